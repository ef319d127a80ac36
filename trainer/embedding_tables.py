"""The word embedding tables of a checkpoint or of a Hugging Face folder: E_G, E_D and E_Delta, nothing else of them.

What: a run's discriminator has E_Delta (gdes), its own E_D (nes) or no table (es); an export has E_D in the folder and
E_G in generator/, so that E_Delta = E_D - E_G where export.json says gdes. Other folders may have E_D alone.
Used by: trainer/embedding_cosine.py. Tested by tests/trainer/test_embedding_cosine.py.
Not here: whole models (trainer/export.py, trainer/published_files.py).
"""

# V vocabulary  D hidden width

import json
from pathlib import Path

from torch import Tensor

from disentangled.model.published_names import DELTA, WORD_EMBEDDINGS
from disentangled.trainer.checkpoint import load_state
from disentangled.trainer.export import read_export_record
from disentangled.trainer.hf_tokenizer import SentencePieceModel
from disentangled.trainer.model_files import ModelFiles
from disentangled.trainer.published_files import GENERATORS_BESIDE, find_weights, read_tensors
from disentangled.trainer.run_folder import TOKENIZER_FILE
from disentangled.trainer.vocabulary_match import read_tokenizer

TABLE_SUFFIX = "word_embeddings.weight"


def read_tables(checkpoint: Path, sharing: str) -> dict[str, Tensor]:
    """E_G, E_D and, of gdes, E_Delta, [V, D] in fp32: of `es` E_D is E_G itself."""

    def read(model: str, name: str) -> Tensor:
        shape = load_state(checkpoint).models[model].shapes[name]
        return ModelFiles(checkpoint / model).read_weight(name, shape)

    shared = read("generator", WORD_EMBEDDINGS)
    if sharing == "es":
        return {"E_G": shared, "E_D": shared}
    if sharing == "nes":
        return {"E_G": shared, "E_D": read("discriminator", WORD_EMBEDDINGS)}
    delta = read("discriminator", DELTA)
    return {"E_G": shared, "E_D": shared + delta, "E_Delta": delta}


def read_model_tables(place: Path) -> dict[str, Tensor]:
    """The tables of a Hugging Face folder or weight file, E_D alone where no generator lies beside it.

    Raises:
        ValueError: no weights, no word embeddings, a generator with a table of another shape.
    """
    weights = find_weights(place, "--model")
    own = read_word_embeddings(weights)
    folder = weights.parent
    beside = next((folder / name for name in GENERATORS_BESIDE if (folder / name).exists()), None)
    if beside is None:
        return {"E_D": own}
    shared = read_word_embeddings(find_weights(beside, "--model"))
    if shared.shape != own.shape:
        raise ValueError(
            f"{beside} has embeddings {tuple(shared.shape)}, {weights} {tuple(own.shape)}: they are no pair"
        )
    tables = {"E_G": shared, "E_D": own}
    record = read_export_record(folder)
    if record is not None and record.embedding_sharing == "gdes":
        tables["E_Delta"] = own.float() - shared.float()
    return tables


def read_word_embeddings(weights: Path) -> Tensor:
    """The one word embedding table [V, D] of a weight file."""
    found = {name: tensor for name, tensor in read_tensors(weights).items() if name.endswith(TABLE_SUFFIX)}
    if len(found) != 1:
        raise ValueError(f"{weights} holds {len(found)} tensors named *{TABLE_SUFFIX}: give a model with one")
    return next(iter(found.values()))


def read_model_pieces(place: Path) -> SentencePieceModel | None:
    """The folder's spm.model, None where there is none or where ids are not places in it, as in other families.

    Raises:
        ValueError: it cannot be read.
    """
    folder = place if place.is_dir() else place.parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if config.get("model_type") != "deberta-v2" or not (folder / TOKENIZER_FILE).is_file():
        return None
    return read_tokenizer(folder / TOKENIZER_FILE)
