"""Export: what a run's checkpoint holds arrives in `AutoModel` and `AutoTokenizer`, and nothing is ever half-written.

Most runs here are written directly, as one engine at ZeRO stage 0 leaves them; checkpoints of every stage come from two
ranks (zero_checkpoints.py), and one run is trained. Not here: names and tokenizers in detail (test_hf_checkpoint.py,
test_hf_tokenizer.py).
"""

import os
import shutil
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from disentangled.data_prep.shard_schema import load_manifest, open_shard
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.layout import padded_layout
from disentangled.model.published_names import DELTA, WORD_EMBEDDINGS
from disentangled.trainer import export
from disentangled.trainer.checkpoint import MODELS, TrainerState, seal, step_name
from disentangled.trainer.checkpoint_writer import write_part
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.engine import build_models
from disentangled.trainer.engine_state import EngineRecord, RankState
from disentangled.trainer.export import export_run, load_trained_pair, main, read_weights
from disentangled.trainer.model_files import tensor_name
from disentangled.trainer.run_folder import write_run_file
from tests.launching import run_command, start_command
from tests.model.tiny_models import scramble
from tests.trainer.tiny_run import tiny_config
from tests.trainer.zero_checkpoints import ENGINES

FILES = {
    *("config.json", "model.safetensors", "generator/config.json", "generator/model.safetensors"),
    *("spm.model", "tokenizer.json", "tokenizer_config.json", "export.json"),
}
RTD_HEAD = {
    f"mask_predictions.{layer}.{kind}" for layer in ("LayerNorm", "dense", "classifier") for kind in ("weight", "bias")
}
STAGE_0: dict[str, object] = {"zero_optimization": {"stage": 0}}
Pair = tuple[Generator, Discriminator]


def write_run(shards: Path, directory: Path, *overrides: str) -> None:
    """A run folder without a checkpoint."""
    config = tiny_config(shards, f"run.dir={directory}", *overrides)
    write_run_file(directory, config, LocalDataset(shards), STAGE_0)


def write_checkpoint(shards: Path, directory: Path, step: int, *overrides: str) -> Pair:
    """Add a whole checkpoint with random weights to a run folder and return its models."""
    config = tiny_config(shards, f"run.dir={directory}", *overrides)
    pair = build_models(config, load_manifest(shards))
    checkpoint = directory / "checkpoints" / step_name(step)
    states, records = {}, {}
    for name, model in zip(MODELS, pair, strict=True):
        (checkpoint / name).mkdir(parents=True)
        scramble(model, seed=step)
        tensors = {tensor_name("fp32", key): values.detach().flatten() for key, values in model.named_parameters()}
        states[name] = RankState(tensors, dict.fromkeys(tensors, 0))
        records[name] = EngineRecord({key: list(values.shape) for key, values in model.named_parameters()}, {}, {}, 0)
    state = TrainerState(step, 0, "", 1, "ZeRO stage 0 in fp32", [], {}, records, {})
    seal(checkpoint, write_part(checkpoint, states, 0, state))
    return pair


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    """A run with whole checkpoints of steps 5 and 10."""
    write_run(shards, tmp_path / "run")
    write_checkpoint(shards, tmp_path / "run", 5)
    write_checkpoint(shards, tmp_path / "run", 10)
    return tmp_path / "run"


def launch_ranks(*arguments: str) -> None:
    """Run a module as two ranks, without a launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ExitStack() as stack:
        ranks = []
        for rank in ("0", "1"):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "LOCAL_SIZE": "2",
                "MASTER_PORT": str(port),
            }
            settings = [f"{name}={value}" for name, value in variables.items()]
            command = ("env", *settings, "MASTER_ADDR=127.0.0.1", sys.executable, "-m", *arguments)
            ranks.append(stack.enter_context(start_command(*command)))
        for started in ranks:
            finished = started.finish()
            assert finished.code == 0, finished


@pytest.fixture(scope="module")
def zero_runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder for each entry of ENGINES, and one called `trained`."""
    folder = tmp_path_factory.mktemp("zero")
    launch_ranks("tests.trainer.zero_checkpoints", str(shards), str(folder))
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failure_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says on stderr where it must refuse: one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def assert_hidden_states_are_ours(pair: Pair, folder: Path) -> None:
    """Every hidden state of `AutoModel` against the pair's discriminator, embeddings as in training."""
    generator, discriminator = pair
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and set(loading["unexpected_keys"]) == RTD_HEAD
    lengths = torch.tensor([[5], [30], [17]])
    mask = (torch.arange(30) < lengths).long()
    ids = torch.randint(4, 400, mask.shape, generator=torch.Generator().manual_seed(4)) * mask
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        rows = None if discriminator.embedding_sharing == "nes" else generator.word_embeddings[ids.view(-1)]
        ours = discriminator.hidden_states(ids.view(-1), padded_layout(mask), None, rows)
    assert len(theirs) == len(ours)
    for layer, (expected, got) in enumerate(zip(theirs, ours, strict=True)):
        difference = (expected - got.view(expected.shape))[mask.bool()].abs().max()
        assert difference <= 1e-5, f"hidden state {layer} differs by {difference}"


@pytest.mark.parametrize("name", ENGINES)
def test_weights_of_every_zero_stage_are_the_fp32_ones(zero_runs: Path, name: str) -> None:
    known: dict[str, dict[str, Tensor]] = torch.load(zero_runs / name / "known_weights.pt")
    for model, state in known.items():
        weights = read_weights(zero_runs / name / "checkpoints" / step_name(0), model)
        assert weights.keys() == state.keys()
        for parameter, values in state.items():
            assert weights[parameter].dtype == torch.float32
            assert torch.equal(weights[parameter], values), parameter


@pytest.mark.parametrize("name", ENGINES)
def test_export_of_every_zero_stage_holds_them(zero_runs: Path, name: str, tmp_path: Path) -> None:
    export_run(zero_runs / name, tmp_path / "out")
    assert not torch.distributed.is_initialized()
    known: dict[str, dict[str, Tensor]] = torch.load(zero_runs / name / "known_weights.pt")
    expected = dict(known["discriminator"])
    expected[WORD_EMBEDDINGS] = known["generator"][WORD_EMBEDDINGS] + expected.pop(DELTA)
    for written, state in (("model", expected), ("generator/model", known["generator"])):
        weights = load_file(tmp_path / "out" / f"{written}.safetensors")
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[parameter], values) for parameter, values in state.items())


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_auto_model_computes_the_runs_hidden_states(shards: Path, tmp_path: Path, sharing: str) -> None:
    overrides = (f"model.embedding_sharing={sharing}", "model.generator_num_hidden_layers=1")
    write_run(shards, tmp_path / "run", *overrides)
    pair = write_checkpoint(shards, tmp_path / "run", 3, *overrides)
    record = export_run(tmp_path / "run", tmp_path / "out")
    assert_hidden_states_are_ours(pair, tmp_path / "out")
    assert set(record.files) == FILES == set(snapshot(tmp_path / "out"))
    generator, loading = AutoModel.from_pretrained(tmp_path / "out" / "generator", output_loading_info=True)
    assert not loading["missing_keys"]
    assert generator.config.num_hidden_layers == 1


def test_run_of_plain_masked_language_modelling_exports_its_generator(shards: Path, tmp_path: Path) -> None:
    write_run(shards, tmp_path / "run", "optimizer.update=mlm", "model.generator_num_hidden_layers=3")
    generator, _ = write_checkpoint(shards, tmp_path / "run", 5, "model.generator_num_hidden_layers=3")
    record = export_run(tmp_path / "run", tmp_path / "out")
    assert {name for name in FILES if not name.startswith("generator/")} == set(record.files)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.num_hidden_layers == 3
    assert torch.equal(model.embeddings.word_embeddings.weight, generator.word_embeddings)


def test_trained_run_loads_by_the_two_lines_it_prints(zero_runs: Path, shards: Path, tmp_path: Path) -> None:
    output, run = tmp_path / "out", zero_runs / "trained"
    command = (sys.executable, "-m", "disentangled.trainer.export", "--run", str(run), "--output", str(output))
    finished = run_command(*command)
    assert finished.code == 0 and finished.stderr == "", finished
    *_, said, imports, loads = finished.stdout.splitlines()
    assert said.startswith(f"wrote {output} from step_00000003 of {run}: ")
    loaded: dict[str, object] = {}
    exec(f"{imports}\n{loads}", loaded)
    assert type(loaded["model"]).__name__ == "DebertaV2Model"
    pair = load_trained_pair(run)
    assert_hidden_states_are_ours(pair, output)
    assert pair[1].state_dict()[DELTA].any()  # three steps have moved it

    manifest = load_manifest(shards)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert len(tokenizer) == manifest.num_pieces + 1
    shard = open_shard(shards, manifest.splits["train"][0])
    for row in range(20):
        ids = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tolist()
        assert tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids == ids


def test_newest_whole_checkpoint_is_taken_and_a_damaged_one_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export_run(run, tmp_path / "first").checkpoint == "step_00000010"
    cut = run / "checkpoints" / "step_00000010" / "discriminator" / "rank_00000.safetensors"
    os.truncate(cut, cut.stat().st_size // 2)
    assert main(["--run", str(run), "--output", str(tmp_path / "second")]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: checkpoint {run / 'checkpoints' / 'step_00000010'} is damaged (")
    assert len(said.err.splitlines()) == 1 and "from step_00000005 of" in said.out


@pytest.mark.parametrize("name", ["step_5", "step_00000005", "5"])
def test_checkpoint_can_be_named(run: Path, tmp_path: Path, name: str) -> None:
    assert export_run(run, tmp_path / "out", name).checkpoint == "step_00000005"


def test_checkpoints_that_cannot_be_used_are_named(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for name in ("step_7", "newest"):
        line = failure_of(capsys, "--run", run, "--output", output, "--checkpoint", name)
        assert line.endswith(f"has no checkpoint {name}: choose one of those it has (step_00000005, step_00000010)")
    for step in ("step_00000005", "step_00000010"):
        (run / "checkpoints" / step / "generator" / "rank_00000.safetensors").unlink()
    line = failure_of(capsys, "--run", run, "--output", output, "--checkpoint", "step_5")
    assert "is damaged (generator/rank_00000.safetensors is missing)" in line
    assert "holds no whole checkpoint (" in failure_of(capsys, "--run", run, "--output", output)
    write_run(shards, tmp_path / "begun")
    assert "holds no checkpoint: " in failure_of(capsys, "--run", tmp_path / "begun", "--output", output)
    assert not output.exists()


def test_folders_that_are_no_run_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    line = failure_of(capsys, "--run", tmp_path, "--output", output)
    assert line == f"error: run {tmp_path} holds no run (run.json is missing): give a training run's run.dir"
    assert "holds no run" in failure_of(capsys, "--run", tmp_path / "absent", "--output", output)
    assert "--output" in failure_of(capsys, "--run", run)
    (run / "spm.model").write_bytes(b"another")
    assert "spm.model is not the tokenizer of this run" in failure_of(capsys, "--run", run, "--output", output)
    assert not output.exists()


def test_weights_of_a_diverged_run_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_diverged(checkpoint: Path, model: str) -> dict[str, Tensor]:
        weights = read_weights(checkpoint, model)
        weights[WORD_EMBEDDINGS if model == "generator" else DELTA][3, 1] = torch.nan
        return weights

    monkeypatch.setattr(export, "read_weights", read_diverged)
    line = failure_of(capsys, "--run", run, "--output", tmp_path / "out")
    assert f"holds NaN or infinity in {WORD_EMBEDDINGS} (1 of " in line
    assert not (tmp_path / "out").exists()


def test_earlier_export_of_the_same_run_is_replaced(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    export_run(run, output, "step_5")
    first = snapshot(output)
    (output / "model.safetensors").unlink()  # whatever became of it
    assert export_run(run, output).checkpoint == "step_00000010"
    second = snapshot(output)
    assert first.keys() == second.keys() and first["model.safetensors"] != second["model.safetensors"]
    assert os.listdir(output.parent) == ["out"]


def test_empty_folder_is_filled_and_link_followed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    export_run(run, tmp_path / "link")
    assert set(snapshot(tmp_path / "elsewhere")) == FILES
    assert (tmp_path / "link").is_symlink()


def test_output_that_holds_something_else_is_refused_and_kept(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(shards, tmp_path / "other", "run.seed=7")
    write_checkpoint(shards, tmp_path / "other", 5)
    export_run(tmp_path / "other", tmp_path / "other_export")
    export_run(run, tmp_path / "extended")
    (tmp_path / "extended" / "README.md").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "export.json").write_text('{"a": 1}')
    (tmp_path / "file").write_text("text")
    before = snapshot(tmp_path)
    faults = {
        "other_export": f"holds an export of another run ({tmp_path / 'other'}): choose another folder",
        "extended": "holds what no export wrote (README.md): choose another folder",
        "foreign": "is not empty and holds no export: choose another folder",
        "run": "is not empty and holds no export: choose another folder",
        "file": "is a file: give a folder",
    }
    for name, fault in faults.items():
        line = failure_of(capsys, "--run", run, "--output", tmp_path / name)
        assert line == f"error: output {tmp_path / name} {fault}"
    assert snapshot(tmp_path) == before


def test_export_that_fails_changes_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_run(run, tmp_path / "earlier", "step_5")
    before = snapshot(tmp_path)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_tokenizer_files", fail)
    for name in ("earlier", "new"):
        assert "No space left on device" in failure_of(capsys, "--run", run, "--output", tmp_path / name)
    assert snapshot(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["earlier", "run"]


def test_earlier_export_returns_where_the_new_one_cannot_take_its_place(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_run(run, tmp_path / "out", "step_5")
    before = snapshot(tmp_path)
    rename = Path.rename

    def fail_once(path: Path, target: Path) -> Path:
        if ".partial" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="Input/output error"):
        export_run(run, tmp_path / "out")
    assert snapshot(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["out", "run"]


def test_weights_can_be_read_by_whoever_reads_the_config(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out")
    modes = {path.stat().st_mode for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_export_outlives_its_run(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out")
    shutil.rmtree(run)
    model, tokenizer = AutoModel.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(["abc def", "a"], padding=True, return_tensors="pt")
    assert torch.isfinite(model(**batch).last_hidden_state).all()
