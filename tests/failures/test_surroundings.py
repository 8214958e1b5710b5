"""Somebody tidies up under a run: its log goes, its folder, its clock."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hbo.integrations.saving as saving
from hbo.run.callbacks import LineCallback
from tests.failures.runs import SAVING, events, expect_undisturbed, summary


def meanwhile(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Something happens after the second of four steps; the checkpoint of it is still to come."""
    on_log = LineCallback.on_log

    def and_more(self: LineCallback, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        on_log(self, args, state, *rest, **kwargs)
        if state.global_step == 2:
            do()

    monkeypatch.setattr(LineCallback, "on_log", and_more)


def test_a_run_log_that_is_deleted_goes_on_from_there(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    run = workspace / "run"
    meanwhile(monkeypatch, (run / "run.jsonl").unlink)
    said = hbo("train", "config.yaml", *SAVING)
    assert said.status == 0, said.err
    assert {event.get("step") for event in events(run)} == {4}
    assert (summary(run)["steps"], (run / "report.html").is_file()) == (4, True)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_folder_in_place_of_the_run_log_is_one_line(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    log = workspace / "run" / "run.jsonl"
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: replace_by_folder(log))
        said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert said.err.startswith("error: run/run.jsonl: ")
    said = hbo("train", "config.yaml", *SAVING, "--resume")
    assert said.err.count("\n") == 1
    assert "run.jsonl" in said.err
    log.rmdir()
    assert hbo("train", "config.yaml", *SAVING, "--resume").status == 0
    assert summary(workspace / "run")["stream_sha256"] == summary(whole)["stream_sha256"]


def test_a_run_folder_that_is_moved_away_is_one_line_or_goes_on(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    run = workspace / "run"
    meanwhile(monkeypatch, lambda: shutil.move(run, workspace / "elsewhere"))
    said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err) == (0, "")
    assert summary(run)["steps"] == 4


def test_a_folder_that_becomes_read_only_is_one_line(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    """Raised by hand: permissions do not hold for everybody who runs tests."""
    opened = Path.open

    def refuse(self: Path, mode: str = "r", *rest: Any, **kwargs: Any) -> Any:
        if "run" in self.parts and mode != "r":
            raise OSError(30, "Read-only file system", str(self))
        return opened(self, mode, *rest, **kwargs)

    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: patch.setattr(Path, "open", refuse))
        said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "Read-only file system" in said.err
    assert hbo("train", "config.yaml", *SAVING, "--resume").status == 0
    expect_undisturbed(workspace / "run", whole, said=frozenset({"damaged-checkpoint"}))


def test_a_clock_that_is_set_back_changes_nothing(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch
):
    """The older checkpoint is then the newer by its time, and must be the one that goes."""
    run = workspace / "run"
    back = itertools.count(start=2e9, step=-60.0)
    monkeypatch.setattr(time, "time", lambda: next(back))
    sealed = saving.seal

    def in_the_future(path: Path, about: Any) -> None:
        sealed(path, about)
        if path.name == "checkpoint-2":
            for each in (path, *path.iterdir()):
                os.utime(each, (4e9, 4e9))

    monkeypatch.setattr(saving, "seal", in_the_future)
    said = hbo("train", "config.yaml", *SAVING, "--set", "training.save_total_limit=1")
    assert (said.status, said.err) == (0, "")
    expect_undisturbed(run, whole)
    assert 0 < summary(run)["balance_seconds"] < summary(run)["wall_seconds"]
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]
