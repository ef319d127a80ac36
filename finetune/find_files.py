"""Which files a run reads: those that are named, or those that a task's row expects in the data folder.

Sets that go by language are found for each language asked for; `all` means every one whose file is there.
Used by: read_task.py. Tested by tests/finetune/test_tasks.py.
Not here: reading them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.tasks import Alternatives, Task

LANGUAGE = "{language}"


def find_train(options: FinetuneOptions, task: Task) -> list[Path]:
    """The training files, in a fixed order."""
    if options.train:
        return check_files(options.train)
    found = _find_sets(options, {_set_name(task.train): task.train}, options.train_languages)
    return list(found.values())


def find_validation(options: FinetuneOptions, task: Task) -> dict[str, Path]:
    """The development sets by name; the first one chooses the best epoch."""
    if options.validation:
        return name_files(options.validation)
    return _find_sets(options, task.validation, options.languages)


def find_test(options: FinetuneOptions) -> dict[str, Path]:
    """The test sets that were named; a release's own are never read unasked, as most hold no labels."""
    return name_files(options.test)


def check_files(paths: Sequence[Path]) -> list[Path]:
    """The paths; ValueError for one that does not exist."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name a file that does")
    return list(paths)


def name_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their names without the ending; ValueError where two are called the same."""
    named = {path.stem: path for path in check_files(paths)}
    if len(named) < len(paths):
        raise ValueError(f"{', '.join(map(str, paths))}: two files have the same name: results go by it, rename one")
    return named


def _set_name(alternatives: Alternatives) -> str:
    return LANGUAGE if any(LANGUAGE in name for name in alternatives) else "train"


def _find_sets(options: FinetuneOptions, sets: dict[str, Alternatives], languages: tuple[str, ...]) -> dict[str, Path]:
    """The file of each set; of a set by language, that of each language, `en` first."""
    if options.data is None:
        raise ValueError(f"task {options.task!r} needs --data, the folder with its files, or --train and --validation")
    if not options.data.is_dir():
        raise ValueError(f"data {options.data} is no folder: give the one with the files of {options.task}")
    found: dict[str, Path] = {}
    for name, alternatives in sets.items():
        if name == LANGUAGE:
            found |= _find_languages(options.data, alternatives, languages)
            continue
        path = next((options.data / each for each in alternatives if (options.data / each).exists()), None)
        if path is None:
            raise ValueError(f"data {options.data} has none of {', '.join(alternatives)}: give the folder that does")
        found[name] = path
    return found


def _find_languages(data: Path, alternatives: Alternatives, languages: tuple[str, ...]) -> dict[str, Path]:
    there: dict[str, Path] = {}
    for pattern in alternatives:
        for path in sorted(data.glob(pattern.replace(LANGUAGE, "*"))):
            match = re.fullmatch(
                re.escape(pattern).replace(re.escape(LANGUAGE), r"([\w-]+)"), str(path.relative_to(data))
            )
            if match:
                there.setdefault(match[1], path)
    if not there:
        raise ValueError(f"data {data} has none of {', '.join(alternatives)}: give the folder that does")
    wanted = sorted(there) if languages == ("all",) else languages
    missing = [language for language in wanted if language not in there]
    if missing:
        raise ValueError(f"data {data} has no file for language {missing[0]!r}: there are {', '.join(sorted(there))}")
    first_english = sorted(wanted, key=lambda language: language != "en")
    return {language: there[language] for language in first_english}
