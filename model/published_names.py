"""Names of published files' tensors, brought to the names that our modules have.

What: Hugging Face's names are ours. Besides them come: a trunk without prefix (`DebertaV2Model` saved alone), the
original code's `bert.` for `deberta.`, and the MLM head of transformers' `legacy` models, `cls.predictions`.
Used by: model/hf_checkpoint.py, model/pair_from_hf.py. Tested by tests/model/test_hf_checkpoint.py.
Not here: which tensors a model needs, and embedding tables' sums (model/hf_checkpoint.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]

WORD_EMBEDDINGS = "deberta.embeddings.word_embeddings.weight"
DELTA = "deberta.embeddings.word_embeddings_delta.weight"
ORIGINAL_DELTA = "deberta.embeddings.word_embeddings._weight"  # the original code's E_Delta
INPUT_POSITIONS = "deberta.embeddings.position_embeddings.weight"
DECODER_POSITIONS = "mask_decoder.position_embeddings.weight"
MLM_HEAD = "lm_predictions.lm_head."
RTD_HEAD = "mask_predictions."

LEGACY_HEAD = "cls.predictions."
# Tied, and in some files all the same: what they must equal.
TIED = {
    f"{LEGACY_HEAD}decoder.weight": WORD_EMBEDDINGS,
    f"{LEGACY_HEAD}decoder.bias": f"{MLM_HEAD}bias",
    f"{MLM_HEAD}weight": WORD_EMBEDDINGS,  # transformers 5.17 writes it
}


def standard_names(hf_state: Mapping[str, Tensor]) -> State:
    """All tensors under our modules' names; names that belong to no module of ours stay as they are.

    Raises:
        ValueError: two tensors for one name, or an MLM head whose output matrix is not the embedding table.
    """
    renamed: State = {}
    for name, tensor in hf_state.items():
        ours = _standard_name(name)
        if ours in renamed:
            raise ValueError(f"the checkpoint holds {ours} under two names: remove one")
        renamed[ours] = tensor
    for name, tied in TIED.items():
        output = renamed.pop(name, None)
        if output is not None and not (tied in renamed and torch.equal(output, renamed[tied])):
            raise ValueError(
                f"the checkpoint's {name} is not its {tied}: this model's MLM head has one matrix, which is the "
                "embedding table; choose another checkpoint"
            )
    return renamed


def _standard_name(name: str) -> str:
    if name.startswith("bert."):
        return f"deberta.{name.removeprefix('bert.')}"
    if name.startswith(("embeddings.", "encoder.")):
        return f"deberta.{name}"
    if name.startswith(LEGACY_HEAD) and name not in TIED:
        return MLM_HEAD + name.removeprefix(LEGACY_HEAD).removeprefix("transform.")
    return name
