"""Table 1 of a run and of exported models: which tables there are, which rows are compared, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from disentangled.model.average_cosine import average_cosine
from disentangled.model.discriminator import Discriminator
from disentangled.model.published_names import DELTA, WORD_EMBEDDINGS
from disentangled.trainer.checkpoint import step_name
from disentangled.trainer.embedding_cosine import choose_rows, main
from disentangled.trainer.export import export_run
from disentangled.trainer.hf_tokenizer import PieceKind, parse_model
from disentangled.trainer.report import write_report
from disentangled.trainer.run_folder import COSINE_FILE, TOKENIZER_FILE
from tests.model.tiny_models import scramble
from tests.trainer import test_export
from tests.trainer.test_export import Pair, write_checkpoint, write_run

SHARINGS = ("es", "nes", "gdes")


@pytest.fixture(autouse=True)
def models_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models of a checkpoint have random values of their own."""

    def scramble_each(model: nn.Module, seed: int) -> None:
        scramble(model, seed + 100 * isinstance(model, Discriminator))

    monkeypatch.setattr(test_export, "scramble", scramble_each)


def make_run(shards: Path, folder: Path, sharing: str = "gdes", steps: tuple[int, ...] = (5, 10)) -> list[Pair]:
    """A run with whole checkpoints of random weights, and their models."""
    override = f"model.embedding_sharing={sharing}"
    write_run(shards, folder, override)
    return [write_checkpoint(shards, folder, step, override) for step in steps]


def tables_of(pair: Pair) -> dict[str, Tensor]:
    """E_G, E_D and E_Delta as the models themselves have them."""
    generator, discriminator = pair
    shared, own = generator.word_embeddings.detach(), discriminator.state_dict()
    if DELTA in own:
        return {"E_G": shared, "E_D": shared + own[DELTA], "E_Delta": own[DELTA]}
    return {"E_G": shared, "E_D": own.get(WORD_EMBEDDINGS, shared)}


def measure(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def read_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_lines_are_of(line: dict[str, float], pair: Pair, run: Path) -> None:
    """Each average of a line is that of the models' own tables, and there is none of other tables."""
    tables = tables_of(pair)
    pieces = parse_model((run / TOKENIZER_FILE).read_bytes())
    chosen = choose_rows(len(tables["E_G"]), pieces, line["fraction"], int(line["seed"])).rows
    found = {name: value for name, value in line.items() if name.endswith("_cosine")}
    assert found == {f"{name}_cosine": average_cosine(table, chosen).mean for name, table in tables.items()}


@pytest.mark.parametrize("sharing", SHARINGS)
def test_each_sharing_has_its_tables_at_each_checkpoint(
    sharing: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pairs = make_run(shards, run, sharing)
    assert measure("--run", run) == 0
    lines = read_lines(run / COSINE_FILE)
    assert [line["step"] for line in lines] == [5, 10]
    for line, pair in zip(lines, pairs, strict=True):
        assert_lines_are_of(line, pair, run)
    last = lines[-1]
    assert (last["E_D_cosine"] == last["E_G_cosine"]) == (sharing == "es")
    assert ("E_Delta_cosine" in last) == (sharing == "gdes")
    shown = capsys.readouterr().out.splitlines()
    assert f"({sharing}): average cosine of all pairs among 25 of 252 word pieces (fraction 0.1, seed 1)" in shown[0]
    assert "left out: 261 special and byte tokens, " in shown[0]
    assert shown[1].split() == ["step", "E_G", "E_D", "E_Delta"]
    values = [last.get(f"{name}_cosine") for name in ("E_G", "E_D", "E_Delta")]
    assert shown[3].split() == ["10", *("-" if value is None else f"{value:.4f}" for value in values)]


@pytest.mark.parametrize("sharing", SHARINGS)
def test_export_gives_what_its_run_gives(sharing: str, shards: Path, tmp_path: Path) -> None:
    run, export, output = tmp_path / "run", tmp_path / "export", tmp_path / "export.jsonl"
    make_run(shards, run, sharing)
    export_run(run, export)
    assert measure("--run", run, "--fraction", "0.5", "--seed", "4") == 0
    assert measure("--model", export, "--fraction", "0.5", "--seed", "4", "--output", output) == 0
    (line,) = read_lines(output)
    of_run = read_lines(run / COSINE_FILE)[-1]
    assert of_run.pop("step") == 10
    assert line.keys() == of_run.keys()
    # E_Delta is E_D - E_G there, each number off by eps / 2 of E_D's: the vector by eps / 2 of |E_D| / |E_Delta|, which
    # is below 4 in random tables, and a cosine by twice that, once for each of its two vectors
    assert line == pytest.approx(of_run, rel=0, abs=4 * torch.finfo(torch.float32).eps)
    assert line["E_D_cosine"] == of_run["E_D_cosine"] and line["E_G_cosine"] == of_run["E_G_cosine"]


def test_other_folders_have_their_word_embeddings_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    table[7] = 0.0
    save_file(
        {"bert.embeddings.word_embeddings.weight": table, "x.weight": torch.ones(2)}, tmp_path / "model.safetensors"
    )
    output = tmp_path / "lines.jsonl"
    assert measure("--model", tmp_path, "--fraction", "1", "--output", output) == 0
    (line,) = read_lines(output)
    expected = average_cosine(table, torch.arange(40)).mean
    assert line == {"fraction": 1.0, "seed": 1, "num_rows": 40, "E_D_cosine": expected, "E_D_zero_rows": 1}
    shown = capsys.readouterr().out
    assert "no spm.model" in shown and "1 of 40 rows of E_D are zeros, left out\n" in shown


def test_rows_are_distinct_word_pieces_named_by_the_seed(shards: Path) -> None:
    pieces = parse_model((shards / TOKENIZER_FILE).read_bytes())
    num_rows = len(pieces.kinds) + 4
    chosen = choose_rows(num_rows, pieces, 0.1, 1).rows.tolist()
    assert len(set(chosen)) == len(chosen) == 25
    assert all(pieces.kinds[row] == PieceKind.NORMAL for row in chosen)
    assert chosen == choose_rows(num_rows, pieces, 0.1, 1).rows.tolist()
    assert chosen != choose_rows(num_rows, pieces, 0.1, 2).rows.tolist()
    everything = choose_rows(num_rows, pieces, 1.0, 1)
    assert everything.rows.tolist() == [row for row, kind in enumerate(pieces.kinds) if kind == PieceKind.NORMAL]
    assert everything.left_out == "261 special and byte tokens, 3 rows without a token"
    with pytest.raises(ValueError, match="513 tokens, the table 500 rows"):
        choose_rows(500, pieces, 0.1, 1)


def test_a_table_of_zeros_has_no_average_and_says_so(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(shards, run)

    def scramble_but_delta(model: nn.Module, seed: int) -> None:
        scramble(model, seed)
        nn.init.zeros_(dict(model.named_parameters()).get(DELTA, torch.empty(0)))

    monkeypatch.setattr(test_export, "scramble", scramble_but_delta)
    write_checkpoint(shards, run, 5)
    assert measure("--run", run) == 0
    (line,) = read_lines(run / COSINE_FILE)
    assert "E_Delta_cosine" not in line and line["E_Delta_zero_rows"] == 25 and line["E_G_zero_rows"] == 0
    assert "step 5: 25 of 25 rows of E_Delta are zeros, left out, so there is no average" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fraction", "0.001"], "--fraction 0.001 of 252 word pieces leaves 0: a pair needs two"),
        (["--fraction", "0"], "--fraction 0: must be above 0 and at most 1"),
        (["--fraction", "1.5"], "--fraction 1.5: must be above 0"),
        (["--model", "x"], "not allowed with argument"),
    ],
)
def test_choices_without_pairs_are_refused(
    arguments: list[str], message: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(shards, tmp_path / "run", steps=(5,))
    capsys.readouterr()
    assert measure("--run", tmp_path / "run", *arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert not (tmp_path / "run" / COSINE_FILE).exists()


def test_damaged_checkpoints_are_passed_over_in_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    make_run(shards, run)
    damaged = run / "checkpoints" / step_name(5) / "generator/rank_00000.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert measure("--run", run) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{step_name(5)} is passed over (it is damaged: generator/rank_00000.safetensors has another" in warning
    assert [line["step"] for line in read_lines(run / COSINE_FILE)] == [10]
    (run / "checkpoints" / step_name(10) / "discriminator/rank_00000.safetensors").unlink()
    assert measure("--run", run) == 2
    *warnings, error = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and "holds no whole checkpoint" in error


def test_weights_that_are_not_finite_are_passed_over(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    make_run(shards, run, steps=(10,))
    monkeypatch.setattr(test_export, "scramble", lambda model, seed: scramble(model, seed, spread=torch.inf))
    write_checkpoint(shards, run, 5)
    assert measure("--run", run) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert "E_G: 25 of 25 rows hold NaN or infinity" in warning


def test_folders_without_what_is_needed_are_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(shards, tmp_path / "new")
    refusals = {
        ("--run", tmp_path / "new"): "holds no checkpoint",
        ("--run", tmp_path): "holds no run",
        ("--model", tmp_path / "new"): "holds no weights",
    }
    save_file({"classifier.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    refusals["--model", tmp_path] = "holds 0 tensors named *word_embeddings.weight"
    for arguments, message in refusals.items():
        capsys.readouterr()
        assert measure(*arguments) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert message in said


def test_lines_of_removed_checkpoints_stay_and_undone_ones_go(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    make_run(shards, run, steps=(5, 10, 20))
    assert measure("--run", run) == 0
    first = read_lines(run / COSINE_FILE)
    for step in (5, 20):  # kept no longer, and of a past that a rollback undid
        shutil.rmtree(run / "checkpoints" / step_name(step))
    assert measure("--run", run) == 0
    assert read_lines(run / COSINE_FILE) == first[:2]
    capsys.readouterr()
    assert measure("--run", run, "--seed", "2") == 2
    assert "lines of seed 1, these are of 2" in capsys.readouterr().err
    assert measure("--run", run, "--seed", "2", "--output", tmp_path / "other.jsonl") == 0


def test_report_draws_the_lines(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(shards, run)
    row = {"step": 5, "mlm_loss": 6.0, "tokens_per_second": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    title = "Average cosine of word embeddings"
    assert title not in write_report(run).read_text(encoding="utf-8")
    assert measure("--run", run) == 0
    page = write_report(run).read_text(encoding="utf-8")
    picture = page[page.index(title) :]
    assert all(f">{name}<" in picture for name in ("E_G", "E_D", "E_Delta"))
    assert '<td>step</td><td class="number">5</td>' in page  # the last values are the log's
