"""A damaged run directory: a report and a recipe, or one line of one error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbo import runlog
from hbo.errors import HBOError
from hbo.reports import export_recipe, read_run, write_report
from hbo.runlog import RunLog, read_log, up_to
from tests.reports.fake_run import FakeRun, fake_run
from tests.security.mutate import damaged, damaged_bytes, json_lines

SHARED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.large_base_example],
    max_examples=30,
)
SIZES = {"a": 40, "b<": 20, "c": 9}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory; never written to."""
    folder = tmp_path_factory.mktemp("whole")
    fake_run(folder, SIZES, FakeRun(steps=8, interval=4))
    return folder


def one_line(work: Callable[[], object]) -> None:
    try:
        work()
    except HBOError as error:
        assert "\n" not in str(error)


def spoil(draw: st.DrawFn, whole: Path, folder: Path) -> None:
    """Write the run into ``folder`` with damage to its values."""
    events = read_log(whole / "run.jsonl")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(events) - 1))
        events[at] = draw(damaged(events[at]))
    (folder / "run.jsonl").write_bytes(json_lines(events))
    summary = json.loads((whole / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(draw(damaged(summary))))
    if draw(st.booleans()):
        (folder / "summary.json").unlink()


@SHARED
@given(data=st.data())
def test_any_values_in_it_can_be_read_and_exported(
    whole: Path, tmp_path: Path, data: st.DataObject
):
    spoil(data.draw, whole, tmp_path)
    one_line(lambda: read_run(tmp_path))
    one_line(lambda: export_recipe(tmp_path, output=tmp_path / "recipe"))


@settings(SHARED, max_examples=3)
@given(data=st.data())
def test_any_values_in_it_can_be_reported(whole: Path, tmp_path: Path, data: st.DataObject):
    spoil(data.draw, whole, tmp_path)
    one_line(lambda: write_report(tmp_path))


@SHARED
@given(data=st.data())
def test_any_bytes_in_it_can_be_read(whole: Path, tmp_path: Path, data: st.DataObject):
    for name in ("run.jsonl", "summary.json", "config.yaml"):
        (tmp_path / name).write_bytes(data.draw(damaged_bytes((whole / name).read_bytes())))
    one_line(lambda: export_recipe(tmp_path))


@SHARED
@given(data=st.data(), step=st.integers(0, 9))
def test_any_log_can_be_gone_on_with(whole: Path, tmp_path: Path, data: st.DataObject, step: int):
    path = tmp_path / "run.jsonl"
    events = [data.draw(damaged(event)) for event in read_log(whole / "run.jsonl")[:4]]
    path.write_bytes(data.draw(damaged_bytes(json_lines(events))))
    RunLog(path, keep=up_to(step)).write("warning", step=1, code="x", text="half \udcff")
    assert read_log(path)[-1]["code"] == "x"


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a million digits": lambda path: path.write_text('{"event": ' + "9" * 1_000_000 + "}"),
    "depth": lambda path: path.write_text("[" * 100_000),
    "nothing": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "no UTF-8": lambda path: path.write_bytes(b"\xff\xfe{}"),
}


@pytest.mark.parametrize("damage", BAD_FILES)
@pytest.mark.parametrize("name", ["run.jsonl", "summary.json", "config.yaml"])
def test_the_commands_say_one_line_or_do_their_work(
    workspace: Path, hbo, whole: Path, name: str, damage: str
):
    run = workspace / "run"
    run.mkdir()
    for part in ("run.jsonl", "summary.json", "config.yaml"):
        (run / part).write_bytes((whole / part).read_bytes())
    (run / name).unlink()
    BAD_FILES[damage](run / name)
    # A report reads what an export reads, and drawing it takes a second.
    for command in ("evaluate" if name == "config.yaml" else "export",) + ("report",) * (
        damage == "no UTF-8"
    ):
        said = hbo(command, "run")
        # evaluate misses the model at least
        assert said.status == 2 or (command != "evaluate" and said.status == 0)
        assert said.err.count("\n") == (1 if said.status else 0)
        assert "Traceback" not in said.out + said.err


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runlog, "MAX_LINE", 1000)
    path = tmp_path / "run.jsonl"
    long: dict[str, Any] = {"event": "step", "step": 1, "text": "a" * 5000}
    path.write_bytes(json_lines([{"event": "step", "step": 0}, long, {"event": "step", "step": 2}]))
    assert [event["step"] for event in read_log(path)] == [0, 2]
