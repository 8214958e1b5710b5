"""Where a subset's records are: local files, an asset, a folder, a hub dataset."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hbo.config import LoadedConfig
from hbo.config.explain import nearest, shorten
from hbo.config.schema import DatasetSection
from hbo.data.readers import READERS, OnBad, Record, read_records
from hbo.errors import ConfigError, EnvironmentProblem
from hbo.run.hub import hub_is_reachable

BUILDERS = frozenset({"json", "csv", "parquet"})
"""Words that ``datasets.load_dataset`` takes as a path to mean plain files of that kind."""

_SPLIT = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def read_subset(loaded: LoadedConfig, name: str, on_bad: OnBad | None) -> list[Record]:
    """All training records of one subset, columns selected and the split's slice taken.

    Args:
        loaded: The configuration.
        name: The subset.
        on_bad: Called with the error of a record that cannot be read; ``None`` raises it.

    Raises:
        ConfigError: A file or folder is not there; a split or column is unknown.
        DataError: A record cannot be read.
        EnvironmentProblem: The hub cannot be reached.
    """
    section = loaded.config.datasets[name]
    key = "data_files" if section.data_files is not None else "path"
    records = _read(loaded, name, section, section.split, key, on_bad)
    return _with_columns(loaded, name, section, records)


def read_heldout(loaded: LoadedConfig, name: str, on_bad: OnBad | None) -> list[Record] | None:
    """Records of ``eval_files`` or ``eval_split``; ``None`` where the subset names neither."""
    section = loaded.config.datasets[name]
    if section.eval_files is not None:
        place = ("datasets", name, "eval_files")
        files = _files(loaded, place, _as_list(section.eval_files), None)
        records = [record for file in files for record in read_records(file, on_bad)]
    elif section.eval_split is not None:
        records = _read(loaded, name, section, section.eval_split, "eval_split", on_bad)
    else:
        return None
    return _with_columns(loaded, name, section, records)


def _read(
    loaded: LoadedConfig,
    name: str,
    section: DatasetSection,
    split: str,
    key: str,
    on_bad: OnBad | None,
) -> list[Record]:
    place = ("datasets", name, key)
    match = _SPLIT.fullmatch(split)
    if match is None:
        raise loaded.error(
            ("datasets", name, "split" if split == section.split else "eval_split"),
            f"is {shorten(split)}; write a split's name and, if wanted, a slice: train[:300]",
        )
    files = _local_files(loaded, name, section, match["name"], place)
    if files is None:
        return _from_hub(loaded, name, section, split)
    records = [record for file in files for record in read_records(file, on_bad)]
    return records[_slice(match, len(records))]


def _slice(match: re.Match[str], size: int) -> slice:
    """The part of the rows that ``[start:stop]`` names, in rows or per cent."""

    def bound(text: str | None) -> int | None:
        if text is None:
            return None
        return round(int(text[:-1]) * size / 100) if text.endswith("%") else int(text)

    return slice(bound(match["start"]), bound(match["stop"]))


def _local_files(
    loaded: LoadedConfig,
    name: str,
    section: DatasetSection,
    split: str,
    place: tuple[str, ...],
) -> list[Path] | None:
    """Files to read; ``None`` means that the hub has them."""
    from hbo.assets import asset_data_files, is_asset

    path = section.path
    data_files = section.data_files
    if isinstance(data_files, dict):
        if split not in data_files:
            known = ", ".join(data_files)
            raise loaded.error(place, f"has no files for the split {split!r}; it has {known}")
        data_files = data_files[split]
    elif split != "train" and (data_files is not None or _is_one_split(path)):
        key = "split" if section.split.startswith(split) else "eval_split"
        raise loaded.error(
            ("datasets", name, key),
            f"is {shorten(split)}, but there is only the split 'train' here; write a slice of it"
            " (train[:300]), or data_files as a mapping from split to files",
        )
    if path is None or path in BUILDERS:
        if data_files is None:
            raise loaded.error(place, f"{path!r} needs 'data_files'")
        return _files(loaded, place, _as_list(data_files), section.data_dir)
    if is_asset(path) and not Path(path).exists():
        try:
            return [Path(asset_data_files(path, section.name))]
        except ConfigError as error:
            raise loaded.error(
                ("datasets", name, "name" if section.name else "path"), error.message
            ) from None
    local = Path(path)
    if local.is_file():
        return [local]
    if local.is_dir():
        folder = local / section.data_dir if section.data_dir else local
        if data_files is not None:
            return _files(loaded, place, _as_list(data_files), str(folder))
        return _in_folder(loaded, name, folder, section.name, split)
    if looks_local(path):
        raise loaded.error(
            ("datasets", name, "path"),
            f"there is no file or folder {path!r} (looked from {Path.cwd()}){_similar(path)}",
        )
    return None


def _is_one_split(path: str | None) -> bool:
    """Whether a path is a file or an asset: these have no splits but ``train``."""
    from hbo.assets import is_asset

    return path is not None and (Path(path).is_file() or is_asset(path))


def looks_local(path: str) -> bool:
    """Whether a path that is not there can only have been local (hub ids are ``owner/name``)."""
    parts = Path(path).parts
    known_suffix = any(path.lower().endswith(suffix) for suffix in READERS)
    return (
        path.startswith((".", "/", "~"))
        or len(parts) > 2
        or known_suffix
        or "\\" in path
        or not path.isprintable()
        or (len(parts) == 2 and Path(parts[0]).is_dir())
    )


def _similar(path: str) -> str:
    """The nearest name in the folder where a file was looked for."""
    folder = Path(path).parent
    try:
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    except OSError:
        names = []
    if Path(path).name in names:
        return "; it is a link to something that is not there"
    close = nearest(Path(path).name, names)
    return f"; did you mean {str(folder / close)!r}?" if close else "; correct the path"


def _as_list(files: str | list[str]) -> list[str]:
    return [files] if isinstance(files, str) else files


def _files(
    loaded: LoadedConfig, place: tuple[str, ...], patterns: list[str], folder: str | None
) -> list[Path]:
    """Files named one by one or by patterns (``data/*.jsonl``), in order; each must be there."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(folder or ".") / pattern
        if _is_there(loaded, place, path):
            found.append(path)
            continue
        matched = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(pattern) else []
        if not matched:
            raise loaded.error(
                place,
                f"there is no file {str(path)!r} (looked from {Path.cwd()}){_similar(str(path))}",
            )
        found += [Path(match) for match in matched]
    for path in found:
        if path.is_dir():
            raise loaded.error(
                place, f"{str(path)!r} is a folder; name files, or use 'path' for it"
            )
    return found


def _is_there(loaded: LoadedConfig, place: tuple[str, ...], path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        text = f"{shorten(str(path))} is no possible file: {error.strerror}"
        raise loaded.error(place, text) from None


def _in_folder(
    loaded: LoadedConfig, name: str, folder: Path, part: str | None, split: str
) -> list[Path]:
    """The files of a local dataset folder that belong to a configuration name and a split."""
    place = ("datasets", name, "path")
    if part is not None and (folder / part).is_dir():
        folder, part = folder / part, None
    if not folder.is_dir():
        raise loaded.error(place, f"there is no folder {str(folder)!r}")
    files = sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file() and any(entry.name.lower().endswith(suffix) for suffix in READERS)
    )
    if part is not None:
        named = [entry for entry in files if entry.name.split(".")[0] == part]
        if not named:
            known = [entry.name.split(".")[0] for entry in files]
            close = nearest(part, known)
            hint = f"; did you mean {close!r}?" if close else ""
            raise loaded.error(
                ("datasets", name, "name"), f"there is no {part!r} in {str(folder)!r}{hint}"
            )
        return named
    of_split = [
        entry for entry in files if re.match(rf"{re.escape(split)}(?![A-Za-z])", entry.name)
    ]
    chosen = of_split or (files if split == "train" else [])
    if not chosen:
        raise loaded.error(
            place,
            f"there is no file of the split {split!r} in {str(folder)!r} ({', '.join(READERS)})",
        )
    return chosen


def _from_hub(loaded: LoadedConfig, name: str, section: DatasetSection, split: str) -> list[Record]:
    import datasets

    place = ("datasets", name, "path")
    if not hub_is_reachable():
        raise EnvironmentProblem(
            f"datasets.{name}.path: {section.path!r} is no local path, and the hub cannot be"
            " reached; check the network, or name local data_files",
            where=loaded.document.place(place),
        )
    datasets.disable_progress_bars()
    arguments: dict[str, Any] = {"name": section.name, "data_dir": section.data_dir}
    try:
        rows = datasets.load_dataset(
            section.path, data_files=section.data_files, split=split, **arguments
        )
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise loaded.error(
            place, f"{section.path!r} cannot be loaded: {shorten(str(error), 200)}"
        ) from None
    return list(_hub_records(rows, f"{section.path}[{split}]"))


def _hub_records(rows: Any, label: str) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        yield Record(None, dict(row), f"{label}: row {number}")


def _with_columns(
    loaded: LoadedConfig, name: str, section: DatasetSection, records: list[Record]
) -> list[Record]:
    if section.columns is None or not records:
        return records
    wanted = section.columns
    known = dict.fromkeys(key for record in records for key in record.data)
    for column in wanted:
        if column not in known:
            close = nearest(column, known)
            hint = f"did you mean {close!r}? " if close else ""
            raise loaded.error(
                ("datasets", name, "columns"),
                f"there is no column {column!r}; {hint}There are {', '.join(known)}",
            )
    return [
        Record(record.line, {k: v for k, v in record.data.items() if k in wanted}, record.where)
        for record in records
    ]
