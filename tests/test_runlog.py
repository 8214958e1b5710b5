"""The run log: whole lines, no NaN, and what a resumed run keeps."""

import json
import os
from pathlib import Path

import pytest

from hbo.runlog import RunLog, read_log, up_to


def test_lines_are_json_objects_with_schema(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl")
    log.write("start", config={"a": 1})
    log.write("step", step=3, loss=float("nan"), subsets={"ü<b>": {"loss": 1.5}})
    lines = (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["schema"] for line in lines] == [1, 1]
    assert json.loads(lines[1])["loss"] is None
    assert read_log(tmp_path / "run.jsonl")[1]["subsets"] == {"ü<b>": {"loss": 1.5}}


def test_a_cut_line_is_dropped_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = RunLog(path)
    for step in (1, 2, 3):
        log.write("step", step=step)
    path.write_text(path.read_text()[:-9])
    assert [event["step"] for event in read_log(path)] == [1, 2]
    again = RunLog(path, keep=up_to(1))
    again.write("step", step=2)
    assert [event["step"] for event in read_log(path)] == [1, 2]


def test_resume_keeps_what_had_happened_and_no_end(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = RunLog(path)
    log.write("start", config={})
    log.write("update", step=4)
    log.write("warning", step=9, code="x", text="y")
    log.write("end", summary={})
    RunLog(path, keep=up_to(4))
    assert [event["event"] for event in read_log(path)] == ["start", "update"]


def test_unknown_event_and_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown event"):
        RunLog(tmp_path / "run.jsonl").write("finish")
    RunLog(None).write("step", step=1)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_open_one_log(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    RunLog(path).write("step", step=1)
    other = tmp_path / f"run.jsonl.{os.getpid() + 1}.tmp"
    other.write_text("another rank, at the same moment")
    RunLog(path)
    assert [event["step"] for event in read_log(path)] == [1]
    assert other.read_text() == "another rank, at the same moment"


def test_what_was_measured_at_the_end_is_measured_again_after_a_resume(tmp_path):
    path = tmp_path / "run.jsonl"
    log = RunLog(path)
    whole, trainers = {"loss": 1.0, "perplexity": 2.7}, {"loss": 1.0}
    log.write("evaluation", step=0, split="test", macro=whole)
    log.write("evaluation", step=4, split="validation", macro=trainers)
    for split in ("validation", "test"):
        log.write("evaluation", step=4, split=split, macro=whole)
    RunLog(path, keep=up_to(4))
    kept = [(event["step"], event["split"]) for event in read_log(path)]
    assert kept == [(0, "test"), (4, "validation")]
