"""Files to records: one function per file format, in a table by suffix.

A reader yields records one by one, so a file is never in memory whole (`.json` is the exception: it
is one value). A record that cannot be read raises, or goes to ``on_bad`` where the caller gave one
and reading continues.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbo.errors import ConfigError, DataError

OnBad = Callable[[DataError], None]

MAX_LINE = 2**26
"""Bytes of a line of JSON Lines, unpacked; a longer one is refused before it is read whole."""
SKIP_HINT = "or go on without such records with `on_bad_record: skip`"


@dataclass(frozen=True)
class Record:
    """One record of a file as it was written, and its place.

    Args:
        line: Line number from 1; ``None`` where the format has no lines (JSON, Parquet, hub).
        data: The record's keys and values.
        where: Its place for messages, such as ``train.jsonl:3``.
    """

    line: int | None
    data: dict[str, Any]
    where: str


def read_records(path: str | Path, on_bad: OnBad | None = None) -> Iterator[Record]:
    """Read the records of one file, lazily, in order.

    Args:
        path: A file whose suffix is in ``READERS``.
        on_bad: Called with the error of a record that cannot be read; ``None`` raises it.

    Returns:
        An iterator over the records.

    Raises:
        ConfigError: The suffix is unknown.
        DataError: The file is missing or unreadable, or (without ``on_bad``) a record is.
    """
    path = Path(path)
    reader = _reader_of(path)
    if path.is_dir():
        raise DataError(f"this is a folder, not a file; name files ({_allowed()})", where=str(path))
    if not path.exists():
        raise DataError(
            f"no such file (looked from {Path.cwd()}); correct data_files or eval_files",
            where=str(path),
        )
    if not path.is_file():
        raise DataError("no regular file but a pipe or a device; name a file", where=str(path))
    return _guarded(reader, path, on_bad or _raise)


def _guarded(reader: Reader, path: Path, on_bad: OnBad) -> Iterator[Record]:
    try:
        yield from reader(path, on_bad)
    except OSError as error:  # permissions, a directory in between, a damaged gzip stream
        text = f"cannot be read: {error.strerror or error}"
        raise DataError(text, where=str(path)) from error
    except EOFError as error:
        raise DataError("the compressed file is cut off; copy it again", where=str(path)) from error
    except zlib.error as error:
        raise DataError(
            f"the compressed file is damaged ({error}); copy it again", where=str(path)
        ) from error


def read_jsonl(path: Path, on_bad: OnBad) -> Iterator[Record]:
    """JSON Lines, plain or gzip: one JSON object a line, UTF-8; blank lines are passed over."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        lines = iter(lambda: file.readline(MAX_LINE), b"")
        for number, raw in enumerate(lines, start=1):
            if len(raw) == MAX_LINE:
                text = f"the line is longer than {MAX_LINE >> 20} MiB; is it JSON Lines?"
                raise DataError(text, where=f"{path}:{number}")
            if not raw.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield Record(number, _object_of_line(raw, where), where)
            except DataError as error:
                on_bad(error)


def read_json(path: Path, on_bad: OnBad) -> Iterator[Record]:
    """JSON: a list of objects, or an object whose ``data`` is such a list."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text (byte {error.start}); save it as UTF-8", where=str(path)
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"not valid JSON ({error.msg}); allowed is a list of objects, "
            "or, in a .jsonl file, one object a line",
            where=f"{path}:{error.lineno}",
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"not usable JSON ({_fault(error)})", where=str(path)) from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(
            'holds no list of records; allowed is [{...}, ...] or {"data": [{...}, ...]}',
            where=str(path),
        )
    yield from _rows(rows, path, "record", on_bad)


def read_csv(path: Path, on_bad: OnBad) -> Iterator[Record]:
    """CSV with a header line, UTF-8; every value is text."""
    # Bytes that are no UTF-8 become half surrogates, so that the row they are in can be told.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file)
        while True:
            try:
                with _long_fields():
                    row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"{path}:{reader.line_num + 1}"
                raise DataError(f"not readable as CSV: {error}", where=where) from None
            where = f"{path}:{reader.line_num}"
            fault = _csv_fault(row, list(reader.fieldnames or ()))
            if fault is None:
                yield Record(reader.line_num, dict(row), where)
            else:
                on_bad(DataError(f"{fault}, {SKIP_HINT}", where=where))


def _csv_fault(row: dict[Any, Any], names: list[str]) -> str | None:
    """What is wrong with a row; ``None`` where nothing is."""
    if None in row or None in row.values():
        return f"this row does not fit the header ({', '.join(names)}); mend it"
    texts = [text for text in (*row, *row.values()) if not text.isascii()]
    if any("\udc80" <= letter <= "\udcff" for text in texts for letter in text):
        return "not UTF-8 text; save the file as UTF-8"
    return None


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lift csv's limit of 131,072 letters a field, which is the whole process's, for one row."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_parquet(path: Path, on_bad: OnBad) -> Iterator[Record]:
    """Parquet, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            yield from _rows((row for batch in batches for row in batch), path, "row", on_bad)
    except (pa.ArrowException, ValueError, OverflowError) as error:  # also text that is no UTF-8
        raise DataError(f"not a readable Parquet file: {error}", where=str(path)) from None


Reader = Callable[[Path, OnBad], Iterator[Record]]

READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
    ".csv": read_csv,
}


def _raise(error: DataError) -> None:
    raise error


def _allowed() -> str:
    return ", ".join(READERS)


def _reader_of(path: Path) -> Reader:
    for suffix, reader in READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    raise ConfigError(f"no reader for this kind of file; allowed are {_allowed()}", where=str(path))


def _rows(rows: Iterable[Any], path: Path, word: str, on_bad: OnBad) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        where = f"{path}: {word} {number}"
        if isinstance(row, dict):
            yield Record(None, row, where)
        else:
            on_bad(
                DataError(
                    f"expected an object, got {_kind(row)}; mend it, {SKIP_HINT}", where=where
                )
            )


def _object_of_line(raw: bytes, where: str) -> dict[str, Any]:
    """The object on one line of JSON Lines."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 text (byte {error.start} of the line); save the file as UTF-8, {SKIP_HINT}",
            where=where,
        ) from None
    except (ValueError, RecursionError) as error:
        # Only a file's last line can lack its newline: the sign of a write that was cut off.
        cut = isinstance(error, json.JSONDecodeError) and not raw.endswith(b"\n")
        fault = "the last line is cut off" if cut else f"not valid JSON ({_fault(error)})"
        raise DataError(
            f"{fault}; each line must be one JSON object; mend it, {SKIP_HINT}", where=where
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"expected one JSON object on the line, got {_kind(value)}; mend it, {SKIP_HINT}",
            where=where,
        )
    return value


def _fault(error: ValueError | RecursionError) -> str:
    """Why a text is no JSON: its syntax, its depth, or a number of thousands of digits."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number is too long"


def _kind(value: object) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
