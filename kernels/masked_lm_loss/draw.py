"""How replacement ids are drawn: by inverse distribution in two steps that repeat in any tile size.

Ids are taken in blocks of SAMPLE_BLOCK, fixed for ever: 0 .. 127, 128 .. 255, and so on. A row's first uniform number
chooses a block by the blocks' probabilities, its second an id of the block by the ids' probabilities inside it; both
come from one call of the counter RNG (element 0). So a draw costs one exponential a logit and no random number a logit,
and depends on nothing but its row's logits and its key.

A diverged generator's update is refused, the discriminator's is not: NaN logits count as 0 here and infinite ones as
+-LARGEST_SCORE, so that each row still gets an id that exists and is not banned.
Used by: reference.py and eager.py; forward.py repeats it in Triton. Tested by: tests/kernels/test_masked_lm_draws.py.
"""

# M masked tokens  V vocabulary  C choices

from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled.kernels.counter_rng import uniform_pair

SAMPLE_BLOCK = 128
# Two of them are subtracted without an overflow in float32, and no logit that means anything is as large.
LARGEST_SCORE = 1e30


@dataclass(frozen=True, eq=False)
class Draw:
    """What a draw is made from, besides the logits.

    Attributes:
        seed, stream: of the counter RNG.
        sample, token: [M] int64, the key of each row's draw: the same token draws the same numbers on any machine.
        banned: [V] bool, ids that are never drawn; at least one is not banned.
        temperature: ids are drawn from softmax(logits / temperature).
    """

    seed: int
    stream: int
    sample: Tensor
    token: Tensor
    banned: Tensor
    temperature: float = 1.0

    def uniforms(self) -> Tensor:
        """The two numbers of each row, float64 [M, 2]."""
        return uniform_pair(self.seed, self.stream, sample=self.sample, token=self.token, element=0)


def scores_of(logits: Tensor, temperature: float, ban: Tensor) -> Tensor:
    """Finite logits / temperature, and -inf where ban is -inf instead of 0: a new tensor of logits' shape."""
    scores = (logits if temperature == 1.0 else logits / temperature).nan_to_num(0.0, LARGEST_SCORE, -LARGEST_SCORE)
    return scores.clamp_(-LARGEST_SCORE, LARGEST_SCORE).add_(ban)


def choose(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """The first of C choices whose cumulative weight passes uniform's share of all: [M, C], [M] -> [M] int64.

    A choice without weight is never taken, even where a parallel cumulative sum is not monotone.
    """
    log_weights = log_weights.double()
    weights = (log_weights - log_weights.amax(-1, keepdim=True)).exp_()
    cumulative = weights.cumsum(-1)
    has_weight = weights > 0
    passed = (cumulative > uniform.unsqueeze(-1) * cumulative[:, -1:]) & has_weight
    place = torch.arange(weights.shape[-1], device=weights.device)
    last = (place * has_weight).amax(-1)
    return torch.where(passed.any(-1), passed.to(torch.uint8).argmax(-1), last)
