"""Ctrl-C and a scheduler's SIGTERM, at every moment of a run: a clean exit, an exact resume."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hbo.integrations.saving as saving
import hbo.run.stop as stop
import hbo.run.train as train
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.measure.probe import Probe
from tests.failures.runs import SAVING, events, expect_undisturbed, warnings

SAID = frozenset({"stopped", "damaged-checkpoint"})
# What is called there, which of its calls, and the step of the checkpoint that is left. The last
# things of a step (its probe, its checkpoint) come after the question whether to stop.
AT_ONCE = {
    "scoring": (train, "measured_scores", 1, 0),
    "evaluation before": (train, "evaluate_half", 1, 0),
    "evaluation after": (train, "evaluate_half", 2, 4),
    "final save": (train, "write_whole", 1, 4),
}
PATIENT = {
    "step": (BalancedSFTTrainer, "training_step", 1, 1),
    "probe": (Probe, "measure", 3, 3),  # two come before any step
    "checkpoint": (torch, "save", 1, 3),
    "seal": (saving, "seal", 1, 3),
}


def signalled(
    original: Callable[..., Any], nth: int, number: int, times: int
) -> Callable[..., Any]:
    """The function; its n-th call is disturbed by a signal, before it does its work."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            for _ in range(times):
                signal.raise_signal(number)
        return original(*args, **kwargs)

    return call


def disturbed(
    hbo: Any,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str, int, int],
    *,
    number: int = signal.SIGTERM,
    times: int = 1,
) -> Any:
    module, name, nth, _ = place
    with monkeypatch.context() as patch:
        patch.setattr(module, name, signalled(getattr(module, name), nth, number, times))
        return hbo("train", "config.yaml", *SAVING)


def resumed(hbo: Any, run: Path, whole: Path) -> None:
    said = hbo("train", "config.yaml", *SAVING, "--resume")
    assert (said.status, said.err) == (0, "")
    expect_undisturbed(run, whole, said=SAID)


@pytest.mark.parametrize("moment", AT_ONCE)
def test_outside_training_a_signal_stops_at_once(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    said = disturbed(hbo, monkeypatch, AT_ONCE[moment], number=signal.SIGINT)
    assert said.status == 130
    assert said.err == "stopped: SIGINT; nothing was lost; run again with --resume\n"
    resumed(hbo, workspace / "run", whole)


@pytest.mark.parametrize("moment", PATIENT)
def test_in_training_a_signal_ends_the_step_and_saves(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    run = workspace / "run"
    said = disturbed(hbo, monkeypatch, PATIENT[moment])
    step = PATIENT[moment][3]
    assert said.status == 143
    text = f"stopped: SIGTERM; checkpoint at step {step} in run; run again with --resume\n"
    assert said.err == text
    assert warnings(run)[-1] == "stopped"
    assert events(run, "warning")[-1]["step"] == step
    assert (run / f"checkpoint-{step}" / "hbo_state.json").is_file()
    resumed(hbo, run, whole)


@pytest.mark.parametrize("moment", PATIENT)
def test_a_second_signal_stops_at_once_and_what_was_saved_resumes(
    workspace: Path, hbo, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    run = workspace / "run"
    monkeypatch.setattr(stop, "ONE_WISH", 0.0)
    said = disturbed(hbo, monkeypatch, PATIENT[moment], number=signal.SIGINT, times=2)
    assert (said.status, said.err.count("\n")) == (130, 1)
    assert not list(run.glob("checkpoint-*/hbo_state.json"))  # none was written to its end
    resumed(hbo, run, whole)


def test_a_signal_after_the_last_step_claims_no_checkpoint_that_is_not_there(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is saved by this configuration, and the training is over."""
    monkeypatch.setattr(saving.Engine, "stop", signalled(saving.Engine.stop, 1, signal.SIGTERM, 1))
    said = hbo("train", "config.yaml", "--set", "training.save_strategy='no'")
    assert said.status == 143
    assert list((workspace / "run").glob("checkpoint-*")) or "checkpoint at" not in said.err
