"""Counts of a layer's bytes against what its tensors say."""

import pytest

from benchmarks.layer_bytes import NORMS, PRECISIONS, count, main
from disentangled.trainer.run_config import load_run_config

pytest.importorskip("triton")

TOKENS = 1000
CONFIG = load_run_config("base").model.discriminator(1)
STATES = TOKENS * CONFIG.hidden_size  # numbers


# bytes of a state: the branch, the residual stream, and what a result in both types takes
@pytest.mark.parametrize(("precision", "branch", "stream", "both"), [("bfloat16", 2, 2, 2), ("autocast", 2, 4, 6)])
def test_the_fused_norm_moves_what_it_must(precision: str, branch: int, stream: int, both: int) -> None:
    places, sums, weights = 2 * 8 * TOKENS, 2 * 4 * TOKENS, 2 * stream * CONFIG.hidden_size
    counts = count(CONFIG, TOKENS, "fused norm", precision)
    # twice in a layer: branch and residual in, the result out; backward also its gradient in, and theirs out
    assert counts["residual_norm"] == 2 * ((branch + stream + both) * STATES + places + sums + weights)
    assert counts["residual_norm_backward"] == 2 * (
        (2 * (branch + stream) + both) * STATES + places + sums + 2 * weights
    )
    assert counts["gelu"] == 2 * 2 * 4 * STATES
    assert not {"hidden_dropout", "native_layer_norm"} & counts.keys()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_fusion_moves_less(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    totals = [sum(count(CONFIG, TOKENS, norm, precision).values()) for norm in NORMS]
    assert totals[0] > totals[1] > totals[2]
    assert main(["--tokens", str(TOKENS)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(NORMS) * len(PRECISIONS)
