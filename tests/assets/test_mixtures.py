"""Rows of OpenAI Evals become prompt/completion messages."""

from __future__ import annotations

import json

import pytest

from hbo.assets.mixtures import convert_row, dataset_members, usable_rows, write_subset
from hbo.errors import ConfigError
from tests.assets.fake import EVALS_DATA, write_wheel


def user(text):
    return {"role": "user", "content": text}


def test_worked_examples_become_turns():
    row = {
        "input": [
            {"role": "system", "content": "Add."},
            {"role": "system", "name": "example_user", "content": "1+1"},
            {"role": "system", "name": "example_assistant", "content": "2"},
            {"role": "user", "name": "somebody", "content": "2+2"},
        ],
        "ideal": " 4 ",
    }
    assert convert_row(row) == {
        "prompt": [
            {"role": "system", "content": "Add."},
            user("1+1"),
            {"role": "assistant", "content": "2"},
            user("2+2"),
        ],
        "completion": [{"role": "assistant", "content": "4"}],
    }


@pytest.mark.parametrize(
    "row",
    [
        {"input": [user("x")]},
        {"input": [user("x")], "ideal": " "},
        {"input": [user("x")], "ideal": []},
        {"input": [user("x")], "ideal": 3},
        {"input": [], "ideal": "a"},
        {"input": [{"role": "user", "content": ["parts"]}], "ideal": "a"},
        {"input": [{"role": "tool", "content": "x"}], "ideal": "a"},
        {"input": ["x"], "ideal": "a"},
        {"ideal": "a"},
    ],
)
def test_rows_without_prompt_or_answer_are_left_out(row):
    assert convert_row(row) is None


def test_broken_lines_are_passed_over():
    good = json.dumps({"input": "x", "ideal": ["y", "z"]})
    found = list(usable_rows(f"{{torn\n\n[1]\n{good}\n"))
    assert found == [{"prompt": [user("x")], "completion": [{"role": "assistant", "content": "y"}]}]


def test_the_order_of_rows_is_mixed_and_does_not_depend_on_the_source(tmp_path):
    values = [{"input": f"{i}", "ideal": "low" if i < 50 else "high"} for i in range(100)]
    texts = []
    for number, source in enumerate((values, values[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        wheel, _ = write_wheel(folder, members={"x/samples.jsonl": source})
        write_subset(wheel, f"{EVALS_DATA}/x/samples.jsonl", folder / "x.jsonl")
        texts.append((folder / "x.jsonl").read_text())
    assert texts[0] == texts[1]
    answers = [json.loads(line)["completion"][0]["content"] for line in texts[0].splitlines()]
    assert len(answers) == 100
    assert 10 <= answers[:50].count("low") <= 40  # sorted source, fair slice


def test_datasets_are_called_by_folder_or_by_folder_and_file(tmp_path):
    wheel, _ = write_wheel(tmp_path)
    assert sorted(dataset_members(wheel)) == ["sums", "two/a", "two/b"]
    with pytest.raises(ConfigError, match=r"evals dataset two/b\.jsonl has no rows with a prompt"):
        write_subset(wheel, f"{EVALS_DATA}/two/b.jsonl", tmp_path / "out.jsonl")
