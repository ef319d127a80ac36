"""A small DeBERTaV3 in Hugging Face's form, with a fast tokenizer of 400 pieces; made once a session of tests."""

from pathlib import Path

from transformers import DebertaV2Model

from disentangled.data_prep.tokenizer import parse_tokenizer
from disentangled.data_prep.train_tokenizer import TrainingOptions, train_model
from disentangled.trainer.hf_tokenizer import write_tokenizer_files
from tests.data_prep.tiny_corpus import make_documents
from tests.finetune.small_models import small_config
from tests.model.tiny_models import scramble

MAX_LENGTH_TOKENS = 64
NUM_PIECES = 400


def write_pretrained(folder: Path, **changes: object) -> Path:
    """Write config, random weights and tokenizer."""
    lines = [line for document in make_documents(200) for line in document.split("\n")]
    tokenizer = parse_tokenizer(train_model(lines, TrainingOptions(NUM_PIECES)), "spm.model")
    sizes = {"vocab_size": NUM_PIECES, "max_position_embeddings": MAX_LENGTH_TOKENS, "num_hidden_layers": 2}
    model = DebertaV2Model(small_config(**sizes | {"pad_token_id": 0} | changes))
    scramble(model).save_pretrained(folder)
    write_tokenizer_files(folder, tokenizer.model, tokenizer.special_ids, MAX_LENGTH_TOKENS)
    return folder
