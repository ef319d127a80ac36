"""SiFT: what is perturbed, that the ascent raises the divergence, that nothing is left on, and gradients of both."""

import pytest
import torch
import torch.nn.functional as F
from transformers import DebertaV2ForSequenceClassification

from disentangled.finetune.accelerate import accelerate
from disentangled.finetune.sift import Perturbation, adversarial_divergence, divergence
from tests.finetune.small_models import small_batch, small_model

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("is_accelerated", [False, True])
def test_divergence_is_positive_and_the_perturbation_is_off_afterwards(head: str, is_accelerated: bool) -> None:
    model, batch = small_model(head, torch.float32), small_batch(head)
    if is_accelerated:
        accelerate(model)
    perturbation = Perturbation().attach(model)
    clean = model(**batch)
    found = adversarial_divergence(model, batch, clean, perturbation, step=1e-1, init=1e-1)
    assert float(found.detach()) > 0 and perturbation.delta is None
    found.backward()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "layer.0" in name)
    assert torch.equal(model(**batch).loss, clean.loss)


def test_perturbation_is_added_before_the_norms_weight_and_bias() -> None:
    model, batch = small_model("ForSequenceClassification"), small_batch("ForSequenceClassification")
    norm, table = model.deberta.embeddings.LayerNorm, model.deberta.embeddings.word_embeddings
    perturbation = Perturbation().attach(model)
    perturbation.delta = torch.randn(*batch["input_ids"].shape, 32, dtype=torch.float64)
    embedded = table(batch["input_ids"])
    normalized = F.layer_norm(embedded, (32,), eps=norm.eps) + perturbation.delta
    # one rounding of each operation in float64, on numbers of size 1
    assert torch.allclose(norm(embedded), normalized * norm.weight + norm.bias, rtol=0, atol=1e-14)


def test_ascent_raises_the_divergence_and_descent_lowers_it() -> None:
    model, batch = small_model("ForSequenceClassification"), small_batch("ForSequenceClassification")
    perturbation = Perturbation().attach(model)
    with torch.no_grad():
        clean = model(**batch)
    found = {}
    # a token's first draw has a length of about 1e-2 * sqrt(32): steps are short beside it
    for step in (-1e-2, 0.0, 1e-2):
        torch.manual_seed(0)
        divergent = adversarial_divergence(model, batch, clean, perturbation, step=step, init=1e-2)
        found[step] = float(divergent.detach())
    assert 0 < found[-1e-2] < found[0.0] < found[1e-2]


def test_divergence_is_that_of_torchs_distributions_and_squares_for_numbers() -> None:
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": torch.zeros(4, 1, dtype=torch.long)}
    ours, theirs = (torch.distributions.Categorical(logits=each) for each in logits)
    kl = torch.distributions.kl_divergence
    expected = (kl(ours, theirs) + kl(theirs, ours)).mean()
    found = divergence({"logits": logits[0]}, {"logits": logits[1]}, batch)
    assert torch.allclose(found, expected, rtol=1e-5)  # float32, twelve terms
    numbers = logits[..., :1]
    assert divergence({"logits": numbers[0]}, {"logits": numbers[1]}, batch) == F.mse_loss(*numbers)


def test_architectures_without_such_a_norm_are_refused() -> None:
    model = small_model("ForSequenceClassification")
    assert isinstance(model, DebertaV2ForSequenceClassification)
    del model.deberta.embeddings.LayerNorm
    with pytest.raises(ValueError, match="has no norm on its embeddings"):
        Perturbation().attach(model)
