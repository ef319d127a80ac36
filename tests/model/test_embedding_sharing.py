"""GDES, ES and NES: which table each loss moves, what the discriminator reads, and that no V x D sum is built."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from disentangled.model.discriminator import Discriminator
from disentangled.model.embeddings import Embeddings
from disentangled.model.generator import Generator
from tests.model.tiny_models import EXACT, MASK_ID, largest_error, packed_run, sampling, scramble, text_ids, tiny_config

LAYOUT = packed_run((6, 9, 4), tail=2)
IDS = text_ids(21)
MASKED = torch.tensor([1, 4, 8, 13, 17])


def pair_of(sharing: str, dtype: torch.dtype = torch.float64) -> tuple[Generator, Discriminator]:
    config = tiny_config()
    generator = scramble(Generator(config, MASK_ID), seed=1).to(dtype)
    return generator, scramble(Discriminator(config, sharing), seed=2).to(dtype)


def judge(discriminator: Discriminator, corrupted_ids: Tensor, shared_rows: Tensor | None) -> Tensor:
    return discriminator(corrupted_ids, IDS, LAYOUT, None, shared_rows).rtd_loss_sum


def moved(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def test_gdes_moves_delta_by_rtd_and_generator_table_by_mlm():
    generator, discriminator = pair_of("gdes")
    delta = discriminator.deberta.embeddings.word_embeddings_delta.weight
    output = generator(IDS, LAYOUT, MASKED, None, sampling())
    output.mlm_loss_sum.backward()
    assert moved(generator.word_embeddings)
    assert delta.grad is None
    generator.zero_grad()

    # even rows that are attached to E_G: stopping the gradient is the discriminator's own business
    judge(discriminator, output.corrupted_ids, generator.word_embeddings[output.corrupted_ids]).backward()
    assert moved(delta)
    assert generator.word_embeddings.grad is None
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_gdes_gradient_reaches_the_rows_of_the_corrupted_ids_only():
    generator, discriminator = pair_of("gdes")
    delta = discriminator.deberta.embeddings.word_embeddings_delta.weight
    corrupted = text_ids(21, seed=4)
    judge(discriminator, corrupted, generator.word_embeddings[corrupted]).backward()
    touched = delta.grad.any(dim=1).nonzero().flatten()
    assert touched.tolist() == sorted(set(corrupted[LAYOUT.live].tolist()))


def test_gdes_reads_the_sum_of_both_tables():
    generator, discriminator = pair_of("gdes")
    own = scramble(Discriminator(tiny_config(), "nes"), seed=2).double()
    summed = generator.word_embeddings + discriminator.deberta.embeddings.word_embeddings_delta.weight
    own.load_state_dict(
        {
            name: value
            for name, value in discriminator.state_dict().items()
            if name != "deberta.embeddings.word_embeddings_delta.weight"
        }
        | {"deberta.embeddings.word_embeddings.weight": summed.detach()}
    )
    assert largest_error(judge(discriminator, IDS, generator.word_embeddings[IDS]), judge(own, IDS, None)) <= EXACT


def test_gdes_starts_as_the_generators_table():
    config = tiny_config()
    discriminator = Discriminator(config, "gdes", seed=2)
    rows = torch.randn(21, config.hidden_size)
    assert torch.equal(discriminator.deberta.embeddings.look_up(IDS, rows), rows)


def test_es_gradient_through_shared_rows_is_the_joint_gradient():
    generator, discriminator = pair_of("es")
    output = generator(IDS, LAYOUT, MASKED, None, sampling(), needs_shared_rows=True)
    joint = output.mlm_loss_sum + 50.0 * judge(discriminator, output.corrupted_ids, output.shared_rows)
    joint.backward()
    expected = {name: parameter.grad.clone() for name, parameter in generator.named_parameters()}
    assert not hasattr(discriminator.deberta.embeddings, "word_embeddings")
    generator.zero_grad()

    # as two engines do it: the discriminator's gradient comes back through a leaf
    output = generator(IDS, LAYOUT, MASKED, None, sampling(), needs_shared_rows=True)
    rows = output.shared_rows.detach().requires_grad_()
    (50.0 * judge(discriminator, output.corrupted_ids, rows)).backward()
    (output.mlm_loss_sum + (output.shared_rows * rows.grad).sum()).backward()
    for name, parameter in generator.named_parameters():
        assert largest_error(parameter.grad, expected[name]) <= EXACT * max(1.0, float(expected[name].abs().max())), (
            name
        )

    generator.zero_grad()
    generator(IDS, LAYOUT, MASKED, None, sampling()).mlm_loss_sum.backward()
    assert largest_error(generator.word_embeddings.grad, expected["deberta.embeddings.word_embeddings.weight"]) > 1.0


def test_nes_tables_are_independent():
    generator, discriminator = pair_of("nes")
    output = generator(IDS, LAYOUT, MASKED, None, sampling())
    judge(discriminator, output.corrupted_ids, None).backward()
    own = discriminator.deberta.embeddings.word_embeddings.weight
    assert moved(own)
    assert generator.word_embeddings.grad is None
    before = judge(discriminator, IDS, None)
    with torch.no_grad():
        generator.word_embeddings.add_(1.0)
    assert torch.equal(judge(discriminator, IDS, None), before)


@pytest.mark.parametrize("sharing", ["gdes", "es"])
def test_missing_generator_rows_are_named(sharing):
    _, discriminator = pair_of(sharing)
    with pytest.raises(ValueError, match="needs the generator's rows: pass shared_rows"):
        judge(discriminator, IDS, None)


def test_unknown_sharing_is_named():
    with pytest.raises(ValueError, match=r"model\.embedding_sharing is 'both': choose one of gdes, nes, es"):
        Discriminator(tiny_config(), "both")


def test_positions_as_input_are_refused():
    with pytest.raises(ValueError, match=r"model\.position_biased_input is true.*: set it false"):
        Discriminator(tiny_config(position_biased_input=True), "nes")


def test_small_delta_survives_bfloat16():
    # E_G of ones normalises to zeros; E_Delta of +-1e-4 is far below bfloat16's last place there, 4e-3 to 8e-3
    config = tiny_config()
    embeddings = Embeddings(config, "delta").bfloat16()
    signs = torch.tensor([1.0, -1.0]).repeat(config.hidden_size // 2)
    nn.init.ones_(embeddings.LayerNorm.weight)
    with torch.no_grad():
        embeddings.word_embeddings_delta.weight.copy_(1e-4 * signs.expand(config.vocab_size, -1))
    states = embeddings(IDS, LAYOUT, None, torch.ones(21, config.hidden_size, dtype=torch.bfloat16))
    assert states.dtype == torch.bfloat16
    delta = float(torch.tensor(1e-4, dtype=torch.bfloat16))
    expected = delta / (delta**2 + config.layer_norm_eps) ** 0.5 * signs
    # two roundings: the sum's in float32 (6e-8 beside 1e-4) and the result's in bfloat16
    assert largest_error(states[0], expected) <= expected.max() * (6e-8 / delta + torch.finfo(torch.bfloat16).eps)


class NoTableSizedTensor(TorchDispatchMode):
    """Fails on every new tensor of a table's size but the first few; views of the parameters are none."""

    def __init__(self, *models: nn.Module, num_values: int, num_allowed: int) -> None:
        super().__init__()
        self.num_values, self.num_allowed = num_values, num_allowed
        self.known = {p.untyped_storage().data_ptr() for model in models for p in model.parameters()}

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **options or {})
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel() >= self.num_values:
                address = tensor.untyped_storage().data_ptr()
                if address not in self.known:
                    assert self.num_allowed > 0, f"{function} made {list(tensor.shape)}"
                    self.num_allowed -= 1
                    self.known.add(address)
        return result


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_builds_no_second_table(sharing, dtype):
    config = tiny_config(vocab_size=200_000, hidden_size=8, num_attention_heads=2, num_hidden_layers=2)
    generator = Generator(config, MASK_ID).to(dtype)
    discriminator = Discriminator(config, sharing).to(dtype)
    ids, banned_by = text_ids(21, vocab_size=200_000), sampling(200_000)
    num_values = config.vocab_size * config.hidden_size
    # one: the gradient of E_G, which the loss in torch makes in the forward pass
    with NoTableSizedTensor(generator, discriminator, num_values=num_values, num_allowed=1):
        # five masked tokens: their logits [5, V] are smaller than a table [V, 8]
        output = generator(ids, LAYOUT, MASKED, None, banned_by, needs_shared_rows=True)
        rows = None if sharing == "nes" else output.shared_rows
        discriminator(output.corrupted_ids, ids, LAYOUT, None, rows)


class Operations(TorchDispatchMode):
    """Collects the names of what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.found.append(function._schema.name.removeprefix("aten::"))
        return function(*arguments, **options or {})


def delta_gradient(dtype: torch.dtype) -> Tensor:
    """E_Delta's, of the embeddings alone; every second token has the same id, so that many rows meet in one."""
    embeddings = scramble(Embeddings(tiny_config(), "delta")).to(dtype)
    ids = torch.where(torch.arange(21) % 2 == 0, 7, IDS)
    states = embeddings(ids, LAYOUT, None, torch.randn(21, 32, generator=torch.Generator().manual_seed(5)).to(dtype))
    states.backward(torch.randn(21, 32, generator=torch.Generator().manual_seed(6)).to(dtype))
    return embeddings.word_embeddings_delta.weight.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_delta_gradient_is_the_same_at_every_call_and_by_the_op_that_is_so_on_gpus(dtype):
    with Operations() as operations:
        gradient = delta_gradient(dtype)
    assert all(torch.equal(gradient, delta_gradient(dtype)) for _ in range(3))
    # embedding's backward sorts the ids and sums each one's rows in order; these would add with atomics on a GPU
    assert "embedding_dense_backward" in operations.found
    assert not {"index_add", "index_add_", "scatter_add", "scatter_add_", "index_put", "index_put_"} & set(
        operations.found
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_makes_no_table_but_the_gradient_of_delta(dtype):
    config = tiny_config(vocab_size=200_000, hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    discriminator = Discriminator(config, "gdes").to(dtype)
    ids, rows = text_ids(21, vocab_size=200_000), torch.zeros(21, 8, dtype=dtype)
    # two: that of the first micro-batch, and that of the second until it is added
    with NoTableSizedTensor(discriminator, num_values=config.vocab_size * 8, num_allowed=2):
        for _ in range(2):
            discriminator(ids, ids, LAYOUT, None, rows).rtd_loss_sum.backward()
    assert discriminator.deberta.embeddings.word_embeddings_delta.weight.grad.any()
