"""Where records come from: files, patterns, folders, splits, slices, columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from hbo.config import from_mapping
from hbo.errors import ConfigError
from hbo.run.sources import looks_local, read_heldout, read_subset
from tests.support.workspace import write_jsonl


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, count in (("train-0", 6), ("train-1", 4), ("test", 3), ("german", 2)):
        rows = [{"text": f"{name} {n}", "grade": n, "other": 0} for n in range(count)]
        (tmp_path / "data").mkdir(exist_ok=True)
        write_jsonl(tmp_path / "data" / f"{name}.jsonl", rows)
    return tmp_path


def texts(section: dict, heldout: bool = False) -> list[str] | None:
    loaded = from_mapping({"model": "m", "datasets": {"a": section}})
    records = (read_heldout if heldout else read_subset)(loaded, "a", None)
    return None if records is None else [record.data["text"] for record in records]


TRAIN = [f"train-{f} {n}" for f, count in ((0, 6), (1, 4)) for n in range(count)]


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"data_files": "data/test.jsonl"}, ["test 0", "test 1", "test 2"]),
        ({"data_files": ["data/german.jsonl", "data/test.jsonl"]},
         ["german 0", "german 1", "test 0", "test 1", "test 2"]),
        ({"data_files": "data/train-*.jsonl"}, TRAIN),
        ({"data_files": {"train": "data/train-*.jsonl", "test": "data/test.jsonl"}}, TRAIN),
        ({"path": "json", "data_files": "data/german.jsonl"}, ["german 0", "german 1"]),
        ({"path": "data"}, TRAIN),
        ({"path": "data", "split": "test"}, ["test 0", "test 1", "test 2"]),
        ({"path": "data", "name": "german"}, ["german 0", "german 1"]),
        ({"path": ".", "data_dir": "data", "split": "test"}, ["test 0", "test 1", "test 2"]),
        ({"path": "data", "data_files": "german.jsonl"}, ["german 0", "german 1"]),
        ({"path": "data/german.jsonl"}, ["german 0", "german 1"]),
        ({"path": "data", "split": "train[:2]"}, TRAIN[:2]),
        ({"path": "data", "split": "train[8:]"}, TRAIN[8:]),
        ({"path": "data", "split": "train[50%:70%]"}, TRAIN[5:7]),
        ({"path": "data", "split": "train[-1:]"}, TRAIN[-1:]),
        ({"data_files": "data/test.jsonl", "columns": ["text"]}, ["test 0", "test 1", "test 2"]),
    ],
)  # fmt: skip
def test_sources(folder: Path, section: dict, expected: list[str]):
    assert texts(section) == expected


def test_heldout_sources(folder: Path):
    assert texts({"path": "data"}, heldout=True) is None
    assert texts({"path": "data", "eval_split": "test"}, heldout=True) == [
        "test 0",
        "test 1",
        "test 2",
    ]
    files = {"path": "data", "eval_files": "data/german.jsonl"}
    assert texts(files, heldout=True) == ["german 0", "german 1"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"data_files": "data/*.csv"}, "there is no file 'data/"),
        (
            {"data_files": {"test": "data/test.jsonl"}},
            "has no files for the split 'train'; it has test",
        ),
        ({"path": "json"}, "'json' needs 'data_files'"),
        (
            {"path": "data", "name": "germann"},
            "there is no 'germann' in 'data'; did you mean 'german'?",
        ),
        ({"path": "data", "split": "validation"}, "no file of the split 'validation' in 'data'"),
        ({"path": "data", "data_dir": "x"}, "there is no folder 'data/x'"),
        (
            {"data_files": "data/test.jsonl", "columns": ["txt"]},
            "no column 'txt'; did you mean 'text'?",
        ),
        ({"path": "data/germa.jsonl"}, "no file or folder 'data/germa.jsonl'"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, section: dict, message: str):
    with pytest.raises(ConfigError, match=r".") as caught:
        texts(section)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("./a", True), ("/a", True), ("~/a", True), ("a/b/c", True), ("x.jsonl", True),
        ("data/x", True), ("gpt2", False), ("owner/name", False),
    ],
)  # fmt: skip
def test_what_can_only_be_a_local_path(folder: Path, path: str, local: bool):
    assert looks_local(path) is local
