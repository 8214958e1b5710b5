"""Seconds of training: what evaluations take is not among them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from hbo.run.callbacks import CLOCK_KEY, ClockCallback, ValidationCallback
from hbo.runlog import RunLog, read_log


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


class Trainer:
    """Evaluates two subsets by calling itself, as the Trainer of transformers does."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def evaluate(self, dataset: Any = None) -> None:
        if dataset is None:
            for name in ("a", "b"):
                self.evaluate(name)
        self._clock.now += 10


def test_evaluations_take_no_time_of_training_and_a_resume_goes_on(passing: Clock):
    clock = ClockCallback(90.0, {"seconds": 5.0, "training_seconds": 3.0}, {"ranks": 1})
    trainer, state = Trainer(passing), SimpleNamespace(stateful_callbacks={}, global_step=1)
    clock.leave_out_evaluations(trainer)
    trainer.evaluate()  # before training: not counted
    clock.on_train_begin(None, state, None)
    passing.now += 2
    trainer.evaluate()
    passing.now += 4
    assert clock.training_seconds == 3 + 2 + 4
    clock.on_step_end(None, state, None)
    saved = state.stateful_callbacks[CLOCK_KEY]
    assert saved == {"seconds": 5.0 + 76, "training_seconds": 9.0, "ranks": 1}
    clock.on_train_end(None, state, None)
    passing.now += 50
    trainer.evaluate()
    passing.now += 50
    assert clock.training_seconds == 9.0


def test_an_evaluation_event_says_how_long_was_trained_until_it_began(passing: Clock, tmp_path):
    clock = ClockCallback(100.0, {}, {})
    log = RunLog(tmp_path / "run.jsonl")
    callback = ValidationCallback(log, ["a"], clock)
    trainer, state = Trainer(passing), SimpleNamespace(stateful_callbacks={}, global_step=7)

    def evaluate(dataset: Any = None) -> None:
        passing.now += 10
        for logs in ({"eval_a_loss": 1.5}, {"eval_mixture_loss": 1.5}):
            callback.on_log(None, state, None, logs)

    trainer.evaluate = evaluate
    clock.leave_out_evaluations(trainer)
    clock.on_train_begin(None, state, None)
    passing.now += 6
    trainer.evaluate()
    (event,) = read_log(tmp_path / "run.jsonl")
    assert (event["split"], event["step"], event["seconds"]) == ("validation", 7, 6.0)
