"""docs/accelerate.md: its program runs as it stands there, its command is understood, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.drop_in import make_parser
from tests.finetune.small_models import small_model
from tests.launching import ROOT

PAGE = (ROOT / "docs" / "accelerate.md").read_text(encoding="utf-8")


def test_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "text": 2}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        tmp_path / "my_model"
    )
    small_model("ForSequenceClassification").float().save_pretrained(tmp_path / "my_model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(program, names)
    model = names["model"]
    assert isinstance(model, transformers.DebertaV2ForSequenceClassification)
    assert model.classifier.weight.grad.any()


def test_command_is_understood() -> None:
    (line,) = re.findall(r"^\.venv/bin/python -m benchmarks\.drop_in(.*)$", PAGE, re.MULTILINE)
    assert make_parser().parse_args(shlex.split(line)).size == "base"


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./-]+)\)", PAGE))
def test_named_files_exist(path: str) -> None:
    assert (ROOT / "docs" / path).exists()
