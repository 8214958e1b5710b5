"""From a configuration that names a family of puzzles to answers judged by its verifier."""

from __future__ import annotations

import pytest

from hbo.assets import asset_data_files
from hbo.config import load_config
from hbo.errors import DataError
from hbo.run.heldout import evaluate_half, examples_to_json
from hbo.run.prepare import prepare
from tests.support.tiny import tiny_model
from tests.support.workspace import make_workspace, write_config

pytestmark = pytest.mark.asset

SUMS = "chain_sum max_terms=2 max_digits=1 size=40"


def prepared(folder, **sums):
    datasets = {"sums": sums, "german": {"data_files": "german.jsonl"}}
    return prepare(load_config(write_config(folder, datasets=datasets)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_held_out_examples_of_a_family_are_graded_by_its_verifier(folder):
    found = prepared(folder, path="reasoning-gym", name=SUMS, split="train[:30]")
    sums = found.parts[0]
    assert sums.rows == 30 and len(sums.train) + len(sums.validation) + len(sums.test) == 30
    for each in (*sums.validation, *sums.test):
        assert each.verify is not None
        assert each.verify(f"+{each.response}.0") and not each.verify(f"{each.response}1")
    results = evaluate_half(tiny_model(), found, "test")
    assert results["sums"].grading == "verifier" and results["german"].grading == "options"
    row = examples_to_json(found, 4, {"test": results})["splits"]["test"]["sums"]
    assert row["grading"] == "verifier" and len(row["correct"]) == len(sums.test)


def test_without_the_column_the_answers_are_graded_as_any_others(folder):
    found = prepared(folder, path="reasoning-gym", name=SUMS, columns=["prompt", "completion"])
    assert all(each.verify is None for each in found.parts[0].test)


def test_an_edited_file_is_refused_with_its_line(folder):
    lines = asset_data_files("reasoning-gym", SUMS).read_text(encoding="utf-8").splitlines()
    edited = [
        line.replace('"assistant", "content": "', '"assistant", "content": "9') for line in lines
    ]
    (folder / "sums.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert prepared(folder, data_files="sums.jsonl").parts[0].test[0].verify is not None
    (folder / "sums.jsonl").write_text("\n".join(edited), encoding="utf-8")
    with pytest.raises(DataError, match=r"sums\.jsonl:\d+: the answer is not that of `verifier`"):
        prepared(folder, data_files="sums.jsonl")
