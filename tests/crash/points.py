"""Moments of a run at which it can be made to kill itself, each one function call."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class Point:
    """A call and what is left of it.

    Args:
        target: ``module:name`` of the function; ``module:Class.name`` of a method.
        way: A key of ``WAYS``: how far the call gets.
        argument: Position of the argument that says which of the calls are meant.
        pattern: What that argument has to look like.
    """

    target: str
    way: str
    argument: int = 0
    pattern: str = "*"


def die() -> NoReturn:
    """What no handler hears."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _halve(path: str | Path) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def _before(call: Callable[[], Any], argument: Any, owner: Any) -> NoReturn:
    die()


def _after(call: Callable[[], Any], argument: Any, owner: Any) -> NoReturn:
    call()
    die()


def _half_written(call: Callable[[], Any], argument: Any, owner: Any) -> NoReturn:
    """The file that the argument names is cut in the middle."""
    call()
    _halve(argument)
    die()


def _half_moved(call: Callable[[], Any], argument: Any, owner: Any) -> NoReturn:
    """The temporary file is cut in the middle and never takes its place."""
    _halve(owner)
    die()


def _half_removed(call: Callable[[], Any], argument: Any, owner: Any) -> NoReturn:
    """Every second file of the folder is gone."""
    for file in sorted(path for path in Path(argument).rglob("*") if path.is_file())[::2]:
        file.unlink()
    die()


def _half_line(call: Callable[[], Any], argument: Any, owner: Any) -> NoReturn:
    """The run log ends in the middle of the event."""
    path = owner.path
    before = path.stat().st_size if path.exists() else 0
    call()
    os.truncate(path, (before + path.stat().st_size) // 2)
    die()


WAYS = {
    "before": _before,
    "after": _after,
    "half written": _half_written,
    "half moved": _half_moved,
    "half removed": _half_removed,
    "half a line": _half_line,
}

_LOG, _EVALUATE = "hbo.runlog:RunLog.write", "hbo.run.train:evaluate_half"
_WEIGHTS, _TRAINER = "transformers.modeling_utils:safe_save_file", "transformers.trainer_callback"
_STATE = f"{_TRAINER}:TrainerState.save_to_json"

BEFORE = {
    "scores": Point("os:replace", "half moved", 1, "*scores/*"),
    "settings": Point("os:replace", "half moved", 1, "*config.yaml"),
    "start logged": Point(_LOG, "after", 1, "start"),
    "start half logged": Point(_LOG, "half a line", 1, "start"),
    "evaluation": Point(_EVALUATE, "before"),
    "evaluated": Point(_EVALUATE, "after"),
    "evaluation logged": Point(_LOG, "after", 1, "evaluation"),
}
TRAINING = {
    "step": Point("hbo.integrations.mixin:BalancingMixin.compute_loss", "before"),
    "forward": Point("hbo.integrations.mixin:BalancingMixin.compute_loss", "after"),
    "stepped": Point("hbo.integrations.engine:Engine.finish_step", "after"),
    "probe": Point("hbo.measure.probe:Probe.measure", "before"),
    "in probe": Point("hbo.measure.probe:Probe._loss_signals", "after"),
    "probed": Point("hbo.measure.probe:Probe.measure", "after"),
    "update": Point("hbo.balancer:Balancer.update", "before"),
    "updated": Point("hbo.balancer:Balancer.update", "after"),
    "update half logged": Point(_LOG, "half a line", 1, "update"),
    "update logged": Point(_LOG, "after", 1, "update"),
    "step half logged": Point(_LOG, "half a line", 1, "step"),
    "step logged": Point(_LOG, "after", 1, "step"),
}
SAVING = {
    "weights": Point(_WEIGHTS, "half written", 1, "*checkpoint-*"),
    "optimiser": Point("torch:save", "half written", 1, "*optimizer.pt"),
    "random state": Point("torch:save", "half written", 1, "*rng_state.pth"),
    "before trainer state": Point(_STATE, "before"),
    "trainer state": Point(_STATE, "half written", 1),
    "before seal": Point("hbo.integrations.saving:seal", "before"),
    "seal": Point("os:replace", "half moved", 1, "*hbo_state.json"),
    "sealed": Point("hbo.integrations.saving:seal", "after"),
    "rotation": Point("shutil:rmtree", "half removed", 0, "*checkpoint-*"),
    "rotated": Point("shutil:rmtree", "after", 0, "*checkpoint-*"),
}
AFTER = {
    "log rewritten": Point("os:replace", "half moved", 1, "*run.jsonl"),
    "model": Point(_WEIGHTS, "half written", 1, "*model/*"),
    "model card": Point("os:replace", "half moved", 1, "*README.md"),
    "end half logged": Point(_LOG, "half a line", 1, "end"),
    "end logged": Point(_LOG, "after", 1, "end"),
    "summary": Point("os:replace", "half moved", 1, "*summary.json"),
    "summary written": Point("os:replace", "after", 1, "*summary.json"),
    "report": Point("os:replace", "half moved", 1, "*report.html"),
}
POINTS = BEFORE | TRAINING | SAVING | AFTER


def plant(name: str, nth: int) -> None:
    """Make this process kill itself at the n-th call of a point, counted from 1."""
    point = POINTS[name]
    module, _, path = point.target.partition(":")
    *parents, attribute = path.split(".")
    holder = functools.reduce(getattr, parents, importlib.import_module(module))
    original = getattr(holder, attribute)
    calls = 0

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        argument = args[point.argument] if len(args) > point.argument else ""
        matching = point.pattern == "*" or fnmatch(str(argument), point.pattern)
        calls += matching
        if not matching or calls < nth:
            return original(*args, **kwargs)
        owner = args[0] if args else None
        return WAYS[point.way](lambda: original(*args, **kwargs), argument, owner)

    setattr(holder, attribute, watched)
