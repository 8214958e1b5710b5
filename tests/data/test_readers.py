# ruff: noqa: E501  (a table of cases reads best with one case a line)

import gzip
import json

import pytest

from hbo.data.readers import READERS, read_records
from hbo.errors import ConfigError, DataError

ROWS = [{"text": "one", "grade": 1}, {"text": "zwei, 東京\nline", "grade": 2}]


def written(folder, suffix):
    """The two rows as a file of that kind."""
    path = folder / f"rows{suffix}"
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
    if suffix == ".jsonl":
        path.write_text(lines, encoding="utf-8")
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif suffix == ".json":
        path.write_text(json.dumps({"data": ROWS}), encoding="utf-8")
    elif suffix == ".csv":
        path.write_text('text,grade\none,1\n"zwei, 東京\nline",2\n', encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", READERS)
def test_every_reader_gives_the_same_rows(suffix, tmp_path):
    path = written(tmp_path, suffix)
    rows = [record.data for record in read_records(path)]
    expected = [{k: str(v) for k, v in row.items()} for row in ROWS] if suffix == ".csv" else ROWS
    assert rows == expected


def test_a_list_is_json_too_and_records_have_places(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    records = list(read_records(tmp_path / "a.json"))
    assert [record.data for record in records] == ROWS
    assert records[1].where == f"{tmp_path / 'a.json'}: record 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}\n", "a.jsonl:1: not valid JSON (a number is too long)"),
        ("a.json", b'[{"n": ' + b"1" * 5000 + b"}]", "a.json: not usable JSON (a number is too long)"),
        ("a.json", b"[" * 200_000, "a.json: not usable JSON (nested too deeply)"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)[:12] + b"\xff" * 30, "a.jsonl.gz: "),
        ("a.csv", b"text,grade\na,1\n\xff,2\n", "a.csv:3: not UTF-8 text; save the file as UTF-8"),
    ],
)  # fmt: skip
def test_damage_that_a_library_has_its_own_words_for(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(tmp_path / name))
    assert message in str(caught.value)


def test_a_csv_row_that_is_no_text_can_be_skipped_and_a_field_may_be_long(tmp_path):
    long = b"x" * 200_000
    (tmp_path / "a.csv").write_bytes(b"text,grade\n\xff,1\n" + long + b",2\n")
    skipped: list[DataError] = []
    rows = list(read_records(tmp_path / "a.csv", skipped.append))
    assert [row.data["text"] for row in rows] == [long.decode()]
    assert [error.where for error in skipped] == [f"{tmp_path / 'a.csv'}:2"]


def test_blank_lines_and_a_byte_order_mark_are_passed_over_and_lines_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n  \n{"text": "b"}')
    assert [record.line for record in read_records(path)] == [1, 4]
    assert [record.where for record in read_records(path)] == [f"{path}:1", f"{path}:4"]


BAD_LINES = {
    b'{"text": "a"\n{"text": "b"}\n': (1, "not valid JSON"),
    b'{"text": "a"}\n{"text": "b': (2, "the last line is cut off"),
    b'{"text": "a"}\n[1]\n': (2, "expected one JSON object on the line, got a list"),
    b'"a"\n': (1, "got text"),
    b"null\n": (1, "got null"),
    b"3\n": (1, "got a number"),
    b'{"text": "\xff"}\n': (1, "not UTF-8 text (byte 10 of the line)"),
    b"[" * 100_000 + b"\n": (1, "not valid JSON"),
}


@pytest.mark.parametrize("content", BAD_LINES)
def test_a_bad_line_is_named(content, tmp_path):
    line, message = BAD_LINES[content]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.where == f"{path}:{line}"
    assert message in caught.value.message
    assert "`on_bad_record: skip`" in caught.value.message
    assert "\n" not in str(caught.value)


def test_bad_lines_can_be_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\nnonsense\n{"text": "b"}\n[]\n{"text": "c')
    bad = []
    assert [r.data["text"] for r in read_records(path, bad.append)] == ["a", "b"]
    assert [error.where for error in bad] == [f"{path}:{line}" for line in (2, 4, 5)]


def test_a_csv_row_that_does_not_fit_is_named_or_passed_over(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\na,b\n"c\nc",d,e\nf\ng,h\n')
    with pytest.raises(DataError, match=r"a\.csv:4: this row does not fit the header \(prompt, co"):
        list(read_records(path))
    bad = []
    assert [r.data["prompt"] for r in read_records(path, bad.append)] == ["a", "g"]
    assert len(bad) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"rows": []}', "holds no list of records"),
        ("a.json", b'[\n{"a": 1},\n]', "a.json:3: not valid JSON"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.json", b"[1]", "a.json: record 1: expected an object, got a number"),
        ("a.parquet", b"PAR1 no", "not a readable Parquet file"),
        ("a.csv", b"prompt\n\xff\n", "a.csv:"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 100, mtime=0)[:-9], "cut off"),
    ],
)
def test_a_damaged_file_is_one_clear_error(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path / name))


def test_missing_files_folders_and_unknown_kinds_fail_before_the_first_record(tmp_path):
    with pytest.raises(DataError, match=r"no such file .*correct data_files") as caught:
        read_records(tmp_path / "missing.jsonl")
    assert caught.value.where == str(tmp_path / "missing.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="this is a folder"):
        read_records(tmp_path / "folder.jsonl")
    with pytest.raises(ConfigError, match=r"allowed are \.jsonl, "):
        read_records(tmp_path / "data.xlsx")


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\nnonsense\n')
    assert next(iter(read_records(path))).data == {"text": "a"}
