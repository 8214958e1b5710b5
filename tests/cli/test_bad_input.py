"""Every bad input of a user: exit status 2, one line on stderr that says where, before any work."""

# ruff: noqa: E501  (a table of cases reads best with one case a line)

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny
from tests.support.workspace import record, write_config, write_jsonl

Change = Callable[[Path], object]


def replace_line(name: str, number: int, text: str) -> Change:
    def change(folder: Path) -> None:
        lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
        lines[number - 1] = text
        (folder / name).write_text("".join(lines), encoding="utf-8")

    return change


def config(**changes: object) -> Change:
    return lambda folder: write_config(folder, **changes)


def german(**section: object) -> Change:
    section = {"data_files": "german.jsonl", **section}
    return config(datasets={"german": section, "arabic": {"data_files": "arabic.jsonl"}})


def no_chat_template(folder: Path) -> None:
    (folder / "model").unlink()
    save_tiny(folder / "model", chat_template=None)


def model_folder_without_model(folder: Path) -> None:
    (folder / "empty").mkdir()
    write_config(folder, model="empty")


GOOD = json.dumps(record(1))
CASES: dict[str, tuple[Change, str]] = {
    "missing file": (
        german(data_files="germann.jsonl"),
        "config.yaml:4: datasets.german.data_files: there is no file 'germann.jsonl'",
    ),
    "missing file, nearest named": (german(data_files="germann.jsonl"), "did you mean 'german.jsonl'?"),
    "missing evaluation file": (
        german(eval_files="none.jsonl"),
        "config.yaml:5: datasets.german.eval_files: there is no file 'none.jsonl'",
    ),
    "a folder as file": (german(data_files="model"), "config.yaml:4: datasets.german.data_files: 'model' is"),
    "missing path": (
        config(datasets={"german": {"path": "./nowhere"}}),
        "config.yaml:4: datasets.german.path: there is no file or folder './nowhere'",
    ),
    "unknown kind of file": (german(data_files="config.yaml"), "no reader for this kind of file"),
    "unreadable line": (replace_line("german.jsonl", 3, "{oops\n"), "german.jsonl:3: not valid JSON"),
    "truncated last line": (replace_line("german.jsonl", 24, GOOD[:30]), "german.jsonl:24: the last line"),
    "a line that is no object": (replace_line("german.jsonl", 2, "[1]\n"), "german.jsonl:2: expected one JSON"),
    "no response": (
        replace_line("german.jsonl", 5, json.dumps({"prompt": "a"}) + "\n"),
        "german.jsonl:5: a record without a response",
    ),
    "empty response": (
        replace_line("german.jsonl", 5, json.dumps({"prompt": "a", "completion": " "}) + "\n"),
        "german.jsonl:5: a record without a response: `completion` is empty",
    ),
    "unknown format": (
        replace_line("german.jsonl", 1, json.dumps({"frage": "a"}) + "\n"),
        "german.jsonl:1: no known record format in its keys (frage)",
    ),
    "empty subset": (
        lambda folder: write_jsonl(folder / "german.jsonl", []),
        "config.yaml:4: datasets.german: subset 'german' is empty",
    ),
    "too few prompts to hold out": (
        lambda folder: write_jsonl(folder / "german.jsonl", [record(1), record(1), record(2)]),
        "config.yaml:4: datasets.german: 2 different prompts are too few",
    ),
    "no chat template": (no_chat_template, "config.yaml:1: model: its tokenizer has no chat template"),
    "missing model path": (
        config(model="./none/model"),
        "config.yaml:1: model: there is no folder './none/model'",
    ),
    "missing model, absolute": (config(model="/nowhere/model"), "config.yaml:1: model: there is no folder"),
    "a folder that is no model": (model_folder_without_model, "config.yaml:1: model: the folder 'empty' holds"),
    "a file as model": (config(model="german.jsonl"), "config.yaml:1: model: 'german.jsonl' is a file"),
    "misspelt asset": (config(model="smollm2-135"), "config.yaml:1: model: no model 'smollm2-135'; nearest asset: 'smollm2-135m'"),
    "missing scoring model": (
        config(difficulty={"metric": "loss", "scoring_model": "./none"}),
        "config.yaml:9: difficulty.scoring_model: there is no folder './none'",
    ),
    "unknown key": (config(modle="x"), "modle: unknown key 'modle'; did you mean 'model'?"),
    "unknown trainer key": (
        config(training={"max_step": 3}),
        "config.yaml:17: training.max_step: unknown key 'max_step'; did you mean 'max_steps'?",
    ),
    "range of a trainer key": (
        config(training={"learning_rate": -1}),
        "config.yaml:17: training.learning_rate: is -1; must be a finite number, at least 0",
    ),
    "range of our key": (config(evaluation={"holdout": 0.9}), "evaluation.holdout: is 0.9; must be at most 0.5"),
    "unknown policy": (config(balance={"policy": "hob"}), "balance.policy: unknown policy 'hob'; did you mean"),
    "range of a policy's field": (config(balance={"rate": 2}), "config.yaml:12: balance.rate: is 2; allowed"),
    "lag below one": (config(balance={"lag": 0}), "config.yaml:12: balance.lag: is 0; must be at least 1"),
    "floors above one": (
        config(
            datasets={
                "german": {"data_files": "german.jsonl", "min_share": 0.7},
                "arabic": {"data_files": "arabic.jsonl", "min_share": 0.7},
            }
        ),
        "config.yaml:8: datasets.arabic.min_share: the min_share of all datasets sum to 1.4",
    ),
    "budget above max_passes": (
        config(
            datasets={
                "german": {"data_files": "german.jsonl", "max_passes": 1},
                "arabic": {"data_files": "arabic.jsonl", "max_passes": 1},
            },
            training={"max_steps": 100, "per_device_train_batch_size": 8},
        ),
        "config.yaml:19: training.max_steps: the run draws 800 examples (100 steps of 8), but max_passes",
    ),
    "every response cut off": (
        config(training={"max_length": 4, "max_steps": 2}),
        "config.yaml:4: datasets.german: subset 'german' has no example left",
    ),
    "no such column": (
        config(difficulty={"metric": "column:grade"}),
        "german.jsonl:1: difficulty.metric column:grade needs a column 'grade'",
    ),
    "too many loader workers": (
        config(training={"dataloader_num_workers": 4, "max_steps": 2}),
        "config.yaml:17: training.dataloader_num_workers: 4 loader workers draw further ahead",
    ),
    "a split that one file cannot have": (
        german(split="test"),
        "config.yaml:5: datasets.german.split: is 'test', but there is only the split 'train' here",
    ),
    "an evaluation split that one file cannot have": (
        german(eval_split="test"),
        "config.yaml:5: datasets.german.eval_split: is 'test', but there is only the split 'train'",
    ),
    "no files": (german(data_files=[]), "config.yaml:4: datasets.german.data_files: is []; must be a file"),
    "no columns": (german(columns=[]), "config.yaml:5: datasets.german.columns: is empty"),
    "impossible file name": (german(data_files="x" * 999 + ".jsonl"), "is no possible file: File name too long"),
    "bad split": (german(split="train[1:2:3]"), "config.yaml:5: datasets.german.split: is 'train[1:2:3]'"),
    "broken YAML": (lambda folder: (folder / "config.yaml").write_text("a: ["), "config.yaml:1: not valid YAML"),
    "no configuration": (lambda folder: (folder / "config.yaml").unlink(), "config.yaml: no such configuration"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_plan_refuses_it_in_one_line(workspace: Path, hbo, case: str):
    change, message = CASES[case]
    change(workspace)
    said = hbo("plan", "config.yaml")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert (said.status, said.out) == (2, "")


@pytest.mark.parametrize("case", ["unreadable line", "budget above max_passes", "unknown key"])
@pytest.mark.parametrize("command", ["score", "train"])
def test_so_do_the_commands_that_work(workspace: Path, hbo, command: str, case: str):
    change, message = CASES[case]
    change(workspace)
    said = hbo(command, "config.yaml")
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert message in said.err
    assert not (workspace / "run").exists()


def test_bad_records_are_skipped_by_choice_and_counted(workspace: Path, hbo):
    replace_line("german.jsonl", 3, "{oops\n")(workspace)
    replace_line("german.jsonl", 5, json.dumps({"prompt": "a"}) + "\n")(workspace)
    said = hbo("plan", "config.yaml", "--set", "on_bad_record=skip", "--json")
    assert (said.status, said.err) == (0, "")
    plan = json.loads(said.out)
    german = plan["subsets"]["german"]
    assert (german["skipped"], german["source_rows"]) == (2, 22)
    assert "german.jsonl:3" in plan["warnings"][0]["text"]


def test_what_truncation_removes_whole_is_dropped_and_counted(workspace: Path, hbo):
    long = record(900)
    long["prompt"][0]["content"] *= 30
    records = [json.loads(line) for line in (workspace / "german.jsonl").read_text().splitlines()]
    write_jsonl(workspace / "german.jsonl", [*records, long])
    said = hbo("plan", "config.yaml", "--set", "training.max_length=64", "--json")
    german = json.loads(said.out)["subsets"]["german"]
    held = german["validation"] + german["test"]
    assert german["dropped"] + german["rows"] + held == 25
    assert german["dropped"] == 1


def test_held_out_examples_without_a_response_left_are_counted_too(workspace: Path, hbo):
    long = [record(n) for n in range(900, 908)]
    for item in long:
        item["prompt"][0]["content"] *= 30
    write_jsonl(workspace / "test.jsonl", [record(n) for n in range(800, 804)] + long)
    german(eval_files="test.jsonl")(workspace)
    said = hbo("plan", "config.yaml", "--set", "training.max_length=64", "--json")
    plan = json.loads(said.out)
    row = plan["subsets"]["german"]
    assert (row["rows"], row["validation"] + row["test"], row["dropped"]) == (24, 4, 8)
    assert any("8 examples are dropped" in warning["text"] for warning in plan["warnings"])


def test_a_plan_shows_the_tokens_of_groups_and_what_scoring_costs(workspace: Path, hbo):
    said = hbo("plan", "config.yaml", "--json", "--set", "balance={policy: prop}")
    plan = json.loads(said.out)
    assert plan["cost"]["scoring_passes"] == 0
    for row in plan["subsets"].values():
        assert sum(group["tokens"] for group in row["groups"]) == row["tokens"]


def test_a_hub_out_of_reach_is_the_environments_fault(workspace: Path, hbo):
    write_config(workspace, model="someone/some-model")
    said = hbo("plan", "config.yaml")
    assert (said.status, said.out, said.err.count("\n")) == (1, "", 1)
    assert said.err.startswith(
        "error: config.yaml:1: model: 'someone/some-model' is no local folder"
    )
    write_config(workspace, datasets={"a": {"path": "someone/some-data"}})
    said = hbo("plan", "config.yaml")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "the hub cannot be reached" in said.err


def test_debug_adds_the_traceback_anywhere(workspace: Path, hbo):
    shutil.move("german.jsonl", "moved.jsonl")
    for arguments in (("--debug", "plan", "config.yaml"), ("plan", "config.yaml", "--debug")):
        said = hbo(*arguments)
        assert said.status == 2
        assert "Traceback" in said.err
        assert said.err.splitlines()[-1].startswith(
            "error: config.yaml:4: datasets.german.data_files"
        )
