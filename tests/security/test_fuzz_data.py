"""Any bytes as a data file, any values as a record: examples, or one line of one error."""

# ruff: noqa: E501  (a table of records reads best with one record a line)

from __future__ import annotations

import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbo.data import readers
from hbo.data.formats import extra_columns, normalise, prompt_text, response_text
from hbo.data.readers import READERS, read_records
from hbo.errors import DataError
from tests.security.mutate import NASTY, damaged, damaged_bytes

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)

RECORDS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "b", "grade": 3},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "[]"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "a", "input": "c", "output": "b", "system": "d"},
    {"input": [{"role": "user", "content": "a"}], "ideal": ["b"]},
    {"text": "a b"},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "chat_template_kwargs": {"a": 1}},
]  # fmt: skip


def parquet_bytes() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "ü"] * 20, "completion": ["b", "c"] * 20}), buffer)
    return buffer.getvalue()


LINES = "".join(f"{json.dumps(record)}\n" for record in RECORDS).encode()
FILES = {
    ".jsonl": LINES,
    ".jsonl.gz": gzip.compress(LINES, mtime=0),
    ".json": json.dumps(RECORDS).encode(),
    ".csv": b'prompt,completion\na,b\n"c\nd","e"\n',
    ".parquet": parquet_bytes(),
}


@pytest.mark.parametrize("suffix", READERS)
@SHARED
@given(data=st.data())
def test_any_bytes_are_records_or_one_line(tmp_path: Path, suffix: str, data: st.DataObject):
    path = tmp_path / f"d{suffix}"
    path.write_bytes(data.draw(damaged_bytes(FILES[suffix]) | st.binary(max_size=60)))
    skipped: list[DataError] = []
    try:
        for record in read_records(path, skipped.append):
            normalise(record.data, record.where)
    except DataError as error:
        skipped.append(error)
    for error in skipped:
        assert "\n" not in str(error)
        assert str(path) in str(error)


@settings(max_examples=400)
@given(st.sampled_from(RECORDS).flatmap(damaged))
def test_any_values_are_an_example_or_one_line(record: Any):
    if not isinstance(record, dict):
        return
    try:
        example = normalise(record)
    except DataError as error:
        assert "\n" not in str(error)
        return
    extra_columns(record)
    prompt_text(example).encode()  # no half of a surrogate pair comes through
    (response_text(example) or "").encode()


@pytest.mark.parametrize("value", range(len(NASTY)))
@pytest.mark.parametrize("record", RECORDS)
def test_every_nasty_value_in_every_field(record: dict[str, Any], value: int):
    for key in record:
        try:
            prompt_text(normalise({**record, key: NASTY[value]}))
        except DataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a": ' + b"9" * 1_000_000 + b"}", b"\0", b"\xff"]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_bomb_in_json_is_one_bad_record(tmp_path: Path, suffix: str, text: bytes):
    path = tmp_path / f"d{suffix}"
    path.write_bytes(text + b"\n")
    with pytest.raises(DataError, match=r"nested too deeply|too long|not valid JSON|not UTF-8"):
        list(read_records(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_without_end_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
):
    monkeypatch.setattr(readers, "MAX_LINE", 2**20)
    path = tmp_path / f"d{suffix}"
    # A bomb: packed, it is a thousandth of this.
    text = b'{"text": "' + b"a" * 2**26
    path.write_bytes(gzip.compress(text, 1) if suffix.endswith(".gz") else text)
    del text
    tracemalloc.start()
    with pytest.raises(DataError, match=r"jsonl(\.gz)?:1: the line is longer than 1 MiB"):
        list(read_records(path))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_no_file_is_never_opened(tmp_path: Path, suffix: str):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "loop", "zero"):
        with pytest.raises(DataError, match=r"no regular file|a folder|no such file"):
            list(read_records(tmp_path / f"{name}{suffix}"))
