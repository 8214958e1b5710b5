"""Benchmark data from local files, read by the harness's own tasks in place of the hub's."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbo.errors import DataError

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@contextmanager
def reading_from(folder: Path) -> Iterator[None]:
    """While this is open, tasks of the harness are made with datasets from a folder.

    Prompts, choices, filters and metrics stay the harness's: only where a task downloads its data
    from is another.

    Args:
        folder: Holds a folder for each dataset, named by its hub id; see ``read_local``.
    """
    from lm_eval.api.task import ConfigurableTask

    # The 57 subjects of one language of MMMLU are one file.
    read = functools.cache(functools.partial(read_local, folder))

    def download(task: Any, *_args: Any, **_kwargs: Any) -> None:
        task.dataset = _splits_of(task.config, read(task.DATASET_PATH, task.DATASET_NAME), folder)

    before = ConfigurableTask.download
    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = before


def _splits_of(config: Any, found: Any, folder: Path) -> dict[str, Any]:
    """The splits that a task reads."""
    evaluated = config.test_split or config.validation_split
    if evaluated not in found:
        raise DataError(
            f"there is no split {evaluated!r} (but {', '.join(found)}); add {evaluated}.jsonl",
            where=str(folder / config.dataset_path / (config.dataset_name or "")),
        )
    # The harness lists examples for few-shot prompts also where it is to show none.
    shown = (config.training_split, config.validation_split, config.fewshot_split)
    empty = found[evaluated].select([])
    return {**{split: empty for split in shown if split is not None}, **found}


def read_local(folder: Path, dataset: str, name: str | None) -> Any:
    """All splits of one dataset, from a copy of its hub repository or from plain files.

    A folder with a ``README.md`` is a copy as ``hf download`` makes it. Otherwise the files of a
    split are ``NAME/SPLIT.jsonl`` (or ``.json``, ``.csv``, ``.parquet``), ``NAME/SPLIT-*`` or
    ``NAME/SPLIT/*``; without a name, ``default`` or the folder itself stands for ``NAME``.

    Args:
        folder: Of all datasets.
        dataset: Hub id, such as ``openai/gsm8k``.
        name: The part of the dataset that the task asks for, such as a language.

    Raises:
        DataError: Nothing is there, or it cannot be read.
    """
    import datasets

    place = folder / dataset
    if not place.is_dir():
        raise DataError(
            f"there is no folder of that name; copy the dataset there: hf download {dataset}"
            f" --repo-type dataset --local-dir {place}",
            where=str(place),
        )
    try:
        if (place / "README.md").is_file():
            return datasets.load_dataset(str(place), name)
        part = place / (name or "default")
        files = _plain_files(part if name or part.is_dir() else place)
        kind = {BUILDERS[Path(file).suffix] for split in files.values() for file in split}
        if len(kind) != 1:
            raise DataError(
                f"there {'are files of several kinds' if kind else 'is no file'}; wanted: one file"
                f" for each split, such as test.jsonl ({', '.join(BUILDERS)})",
                where=str(part),
            )
        return datasets.load_dataset(kind.pop(), data_files=files)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"cannot be read: {text}", where=str(place)) from error


def _plain_files(folder: Path) -> dict[str, list[str]]:
    """Split -> its files."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path.suffix in BUILDERS:
            name = path.relative_to(folder).parts[0]
            found.setdefault(name.removesuffix(path.suffix).split("-")[0], []).append(str(path))
    return found
