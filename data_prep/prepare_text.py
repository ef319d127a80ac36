"""What must be known of the whole text before a document is encoded: the sources' thresholds, copies, the tokenizer.

The scans of all units (scan_unit.py) are put together here, in one process; none of it depends on their order. Where
no scan is needed, the text is read once only. What was found is kept, so that a build that is stopped later does not
scan again. A sample may end up smaller than asked for: what turns out to be a copy is taken out of it afterwards.

Used by: build_corpus.py. Tested by: tests/data_prep/test_prepare_text.py, test_build_corpus.py.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from disentangled.data_prep.build_folder import PREPARED_NAME
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.gather_scans import GatheredScans
from disentangled.data_prep.prepared_text import PreparedText, load_prepared, save_prepared, without_copies
from disentangled.data_prep.run_units import refuse_failures, run_units
from disentangled.data_prep.scan_unit import ScanJob
from disentangled.data_prep.shard_schema import TOKENIZER_NAME
from disentangled.data_prep.sources import Source
from disentangled.data_prep.split import validation_threshold
from disentangled.data_prep.task_pool import TaskPool
from disentangled.data_prep.tokenizer import Tokenizer, load_tokenizer, parse_tokenizer
from disentangled.data_prep.train_tokenizer import train_model_in_child
from disentangled.data_prep.unit_signatures import remove_signatures
from disentangled.data_prep.whole_file import write_file
from disentangled.data_prep.work_units import Unit


def prepare_text(
    pool: TaskPool,
    units: Sequence[Unit],
    sources: Sequence[Source],
    options: BuildOptions,
    tokenizer: Tokenizer | None,
    directory: Path,
    progress: Progress,
) -> tuple[PreparedText, Tokenizer]:
    """Scan the units as far as the options ask for it; leave the tokenizer, which is trained where none is given, in
    directory, and return both."""
    names = [source.name for source in sources]
    if (directory / PREPARED_NAME).exists():
        return load_prepared(directory / PREPARED_NAME, names), load_tokenizer(directory / TOKENIZER_NAME)
    base = validation_threshold(options.validation_fraction)
    prepared = without_copies(dict.fromkeys(names, base))
    if tokenizer is None or options.validation_floor or options.cleaning.finds_copies:
        scans = _scan(pool, units, sources, options, directory, base, progress)
        prepared = scans.conclude(base)
        remove_signatures(directory)
        if tokenizer is None:
            lines = scans.choose_lines(prepared)
            task = progress.add_task(f"training {options.vocab_size:,} pieces", total=None)
            model = train_model_in_child(lines, options.training)
            progress.update(task, total=1, completed=1)
            tokenizer = parse_tokenizer(model, TOKENIZER_NAME)
        write_file(directory / TOKENIZER_NAME, tokenizer.model)
        save_prepared(directory / PREPARED_NAME, names, prepared)
    else:
        write_file(directory / TOKENIZER_NAME, tokenizer.model)
    return prepared, tokenizer


def _scan(
    pool: TaskPool,
    units: Sequence[Unit],
    sources: Sequence[Source],
    options: BuildOptions,
    directory: Path,
    threshold: int,
    progress: Progress,
) -> GatheredScans:
    """Scan every unit; ValueError for the first one that cannot be read."""
    job = ScanJob(
        directory=directory,
        text_field=options.text_field,
        skip_bad_text=options.skip_bad_text,
        rules=options.cleaning,
        seed=options.seed,
        threshold=threshold,
        floor=options.validation_floor,
        sample_bytes=options.tokenizer_sample_bytes if options.vocab_size else 0,
    )
    scans = GatheredScans(sources, options, directory)
    refuse_failures(run_units(pool, job, units, units, scans.add, progress, "scanning text"), "")
    return scans
