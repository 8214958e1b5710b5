"""A disk that fills, wherever a run writes: one line, and a resume as if nothing had been."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from transformers import modeling_utils

import hbo.integrations.saving as saving
import hbo.reports
import hbo.run.card
from hbo.runlog import RunLog
from tests.failures.runs import SAVING, expect_undisturbed, warnings

PASSED_OVER = frozenset({"damaged-checkpoint"})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Really no space for a file of more bytes: what libraries in C++ and Rust meet."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [3_000, 50_000, 150_000])
def test_no_space_for_a_file_is_one_line_and_resumes(workspace: Path, hbo, whole: Path, size: int):
    """The run log, the weights of a checkpoint, its optimiser: what is too long for the disk."""
    with largest_file(size):
        said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "the disk is full; free some space and run again with --resume" in said.err
    said = hbo("train", "config.yaml", *SAVING, "--resume")
    assert said.status == 0, said.err
    expect_undisturbed(workspace / "run", whole, said=PASSED_OVER)


def failing(original: Callable[..., Any], nth: int, error: Exception) -> Callable[..., Any]:
    """The function, but its n-th call finds no space."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise error
        return original(*args, **kwargs)

    return call


FULL = OSError(28, "No space left on device")
IN_C = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
IN_RUST = safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
PLACES = {
    "seal": (saving, "seal", 2, FULL),
    "optimiser of the second checkpoint": (torch, "save", 5, IN_C),
    "weights": (modeling_utils, "safe_save_file", 2, IN_RUST),
    "model card": (hbo.run.card, "write_card", 1, FULL),
    "report": (hbo.reports, "write_report", 1, FULL),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_disk_that_fills_leaves_a_run_that_resumes(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch, place: str
):
    module, name, nth, error = PLACES[place]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(getattr(module, name), nth, error))
        said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err.count("\n")) == (1, 1), said.err
    assert "the disk is full" in said.err
    assert hbo("train", "config.yaml", *SAVING, "--resume").status == 0
    expect_undisturbed(workspace / "run", whole, said=PASSED_OVER)


@pytest.mark.parametrize("event", ["start", "update", "end"])
def test_half_a_line_in_the_run_log_is_written_again(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch, event: str
):
    """The disk takes half a line; nobody repeats it, and nobody reads it."""
    write = RunLog.write

    def half(self: RunLog, kind: str, **fields: Any) -> None:
        write(self, kind, **fields)
        if kind == event and self.path is not None:
            text = self.path.read_bytes()
            start = text.rstrip(b"\n").rfind(b"\n") + 1
            self.path.write_bytes(text[: (start + len(text)) // 2])
            raise OSError(28, "No space left on device", str(self.path))

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", half)
        said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "run.jsonl: the disk is full" in said.err
    assert hbo("train", "config.yaml", *SAVING, "--resume").status == 0
    expect_undisturbed(workspace / "run", whole)
    assert "damaged-checkpoint" not in warnings(workspace / "run")
