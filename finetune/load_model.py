"""A model with the head of a task, and its tokenizer: pre-trained, or of random weights in the same sizes.

`disentangled.accelerate` is applied to DebertaV2 models; all other architectures run as transformers has them.
The task layer's dropout is every dropout that stands in the head itself, beside the trunk (DebertaV2, BERT, ELECTRA for
sequences, choices and tags); heads of question answering have none, and `set_task_dropout` says so.
Used by: run_task.py. Tested by tests/finetune/test_load_model.py.
Not here: accelerate itself (accelerate.py).
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

from disentangled.finetune.accelerate import accelerate
from disentangled.finetune.kinds import Kind

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "spm.model", "vocab.txt", "vocab.json")
# names under which architectures keep the dropout of a classification head
DROPOUT_SETTINGS = ("cls_dropout", "classifier_dropout", "summary_last_dropout")


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The model's fast tokenizer.

    Raises:
        ValueError: a folder that holds no model or no tokenizer, or a tokenizer that knows no offsets.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model {model} holds no config.json: give a folder that transformers loads")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise ValueError(
                f"model {model} holds no tokenizer ({', '.join(TOKENIZER_FILES[:3])}): save it there with "
                "tokenizer.save_pretrained, or export the run again"
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except OSError as error:
        raise ValueError(f"model {model} is no folder here, and no name that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ValueError(f"model {model} has a tokenizer without character offsets: one of tokenizer.json is needed")
    return tokenizer


def load_model(
    model: str, kind: Kind, *, from_scratch: bool, task_dropout: float | None, use_accelerate: bool
) -> tuple[PreTrainedModel, list[str]]:
    """The model in fp32 with the task's head, and lines that say what was done to it.

    Raises:
        ValueError: the folder's weights are not those of its config; the architecture has no such head.
    """
    config = AutoConfig.from_pretrained(model, **kind.head_settings())
    if type(config) not in kind.auto_class._model_mapping:
        raise ValueError(f"model {model} is a {config.model_type}, which has no {kind.auto_class.__name__}")
    if task_dropout is not None:
        for name in DROPOUT_SETTINGS:
            if hasattr(config, name):
                setattr(config, name, task_dropout)
    if from_scratch:
        loaded = kind.auto_class.from_config(config).float()
        lines = [f"random weights in the sizes of {model}"]
    else:
        loaded, report = kind.auto_class.from_pretrained(
            model, config=config, torch_dtype=torch.float32, output_loading_info=True
        )
        trunk = f"{loaded.base_model_prefix}."
        absent = sorted(name for name in report["missing_keys"] if name.startswith(trunk) and "pooler" not in name)
        if absent:
            raise ValueError(
                f"model {model} lacks {len(absent)} of its encoder's tensors, such as {absent[0]}: export or download "
                "it again, or train from random weights with --from-scratch"
            )
        lines = [f"weights of {model}; new: {', '.join(sorted(report['missing_keys'])) or 'none'}"]
    if task_dropout is not None:
        lines.append(set_task_dropout(loaded, task_dropout))
    if use_accelerate and isinstance(loaded, DebertaV2PreTrainedModel):
        accelerate(loaded)
        lines.append("attention: disentangled.accelerate")
    else:
        lines.append("attention: transformers' own")
    return loaded, lines


def set_task_dropout(model: PreTrainedModel, share: float) -> str:
    """Set every dropout of the head itself; returns what to say."""
    heads = [module for name, module in model.named_children() if name != model.base_model_prefix]
    found = [module for module in heads if isinstance(module, nn.Dropout)]
    for module in found:
        module.p = share
    if found:
        return f"task layer dropout: {share:g}"
    return f"task layer dropout: {type(model).__name__} has none, {share:g} is not used"
