"""What a run adds to a trainer: stopping on a signal, a clock, a line per log and per warning."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from hbo.run.progress import printable, say
from hbo.run.stop import StopRequest
from hbo.run.trackers import guard_trackers
from hbo.runlog import RunLog

CLOCK_KEY = "hbo_run"
RATE_KEY = "hbo_learning_rate"
VALIDATION = "validation"
UNSPOKEN = frozenset({"unknown-reward", "stopped"})
"""Warnings for the run log only: every run has the first until each cell was drawn once, and of a
stop the program speaks itself."""


def watch_over(trainer: Any) -> None:
    """Make a balanced trainer fit for what happens to long runs, before it trains.

    Trackers cannot end it, and a resume may lower the learning rate.
    """
    trainer.add_callback(RateCallback())
    guard_trackers(trainer, trainer.engine.warn)


def first_of_each() -> Callable[[dict[str, Any]], None]:
    """A listener that says the first warning of each code on stderr: the rest would be noise."""
    said = set(UNSPOKEN)

    def say_warning(event: dict[str, Any]) -> None:
        if event["event"] == "warning" and event["code"] not in said:
            said.add(event["code"])
            sys.stderr.write(printable(f"warning: step {event['step']}: {event['text']}") + "\n")

    return say_warning


class StopCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Stop after the optimiser step in which a signal came, with a checkpoint.

    All ranks stop together: a signal may reach them in different steps, so they ask each other.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end of training."""
        if self._requested(args.device):
            control.should_save = True
            control.should_training_stop = True

    def _requested(self, device: torch.device) -> bool:
        mine = self._request.signal_number or 0
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return bool(mine)
        flag = torch.tensor([mine], device=device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        number = int(flag.item())
        if number:  # never back to None: a signal may have come since ``mine`` was read
            self._request.signal_number = number
        return bool(number)


class ClockCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Wall seconds of the whole run and of its training loop, kept in checkpoints for a resume.

    Args:
        start: ``time.perf_counter()`` when this process began.
        left: What the checkpoint that the run goes on from says; empty for a new run.
        facts: More that a checkpoint has to say of the run.
    """

    def __init__(self, start: float, left: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        self._start = start
        self._before = _seconds(left, "seconds")
        self._facts = facts
        self._trained = _seconds(left, "training_seconds")
        self._since: float | None = None  # the training loop runs since then

    @property
    def seconds(self) -> float:
        """Wall seconds until now, those before a resume included."""
        return self._before + time.perf_counter() - self._start

    @property
    def training_seconds(self) -> float:
        """Seconds of the training loop until now, without evaluations."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._trained + running

    def leave_out_evaluations(self, trainer: Any) -> None:
        """Let the time of training stand still while the trainer evaluates."""
        evaluate = trainer.evaluate

        def timed(*args: Any, **kwargs: Any) -> Any:
            running = self._since is not None  # an evaluation of several datasets calls itself
            self._stop()
            try:
                return evaluate(*args, **kwargs)
            finally:
                if running:
                    self._since = time.perf_counter()

        trainer.evaluate = timed

    def _stop(self) -> None:
        self._trained, self._since = self.training_seconds, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count training."""
        self._since = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop counting it."""
        self._stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time where the trainer's checkpoint keeps it."""
        seconds = {"seconds": self.seconds, "training_seconds": self.training_seconds}
        state.stateful_callbacks[CLOCK_KEY] = {**seconds, **self._facts}


def _seconds(left: Mapping[str, Any], key: str) -> float:
    """A time that a checkpoint says; 0 where it says none."""
    seconds = left.get(key)
    return float(seconds) if isinstance(seconds, int | float) else 0.0


class RateCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """A resume with another ``training.learning_rate`` trains with it.

    By itself a Trainer goes on with the rates of the checkpoint's optimiser and schedule, whatever
    was asked for; who lowers the rate of a training that was lost would lose it again.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale what the checkpoint restored by new rate / old rate."""
        before = state.stateful_callbacks.get(RATE_KEY)
        if before and before != args.learning_rate:
            _scale_rates(kwargs["optimizer"], kwargs["lr_scheduler"], args.learning_rate / before)
        state.stateful_callbacks[RATE_KEY] = args.learning_rate


def _scale_rates(optimiser: Any, schedule: Any, factor: float) -> None:
    """Multiply the present and the initial learning rate of each group of parameters."""
    for group in optimiser.param_groups:
        for key in ("lr", "initial_lr"):
            if key in group:
                group[key] = group[key] * factor
    schedule = getattr(schedule, "scheduler", schedule)  # inside Accelerate's wrapper
    for key in ("base_lrs", "_last_lr"):
        if key in vars(schedule):
            setattr(schedule, key, [rate * factor for rate in getattr(schedule, key)])


class ValidationCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """An ``evaluation`` event of the run log for each of the trainer's own evaluations.

    Args:
        log: Where it goes.
        names: The subsets.
        clock: Says how long was trained until then.
    """

    def __init__(self, log: RunLog, names: Sequence[str], clock: ClockCallback) -> None:
        self._log = log
        self._names = names
        self._clock = clock
        self._losses: dict[str, float] = {}

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Gather a loss per subset until their mean closes the evaluation."""
        logs = logs or {}
        for name in self._names:
            if f"eval_{name}_loss" in logs:
                self._losses[name] = logs[f"eval_{name}_loss"]
        if len(self._losses) == len(self._names) and "eval_mixture_loss" in logs:
            self._log.write(
                "evaluation",
                step=state.global_step,
                split=VALIDATION,
                seconds=self._clock.training_seconds,
                subsets={name: {"loss": self._losses[name]} for name in self._names},
                macro={"loss": logs["eval_mixture_loss"]},
            )
            self._losses = {}


class LineCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """One short line for each of the trainer's logs, in place of the whole dictionary."""

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print step, loss and learning rate, or an evaluation's losses."""
        logs = logs or {}
        if "loss" in logs:
            rate = logs.get("learning_rate")
            tail = "" if rate is None else f"  learning rate {rate:.2e}"
            say(f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}{tail}")
        elif "eval_mixture_loss" in logs:
            say(f"step {state.global_step}  eval_mixture_loss {logs['eval_mixture_loss']:.4f}")
