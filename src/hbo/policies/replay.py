"""A policy that repeats a recorded run: its probabilities update by update, or their average."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from hbo.errors import ConfigError, DataError
from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields
from hbo.policies.base import PolicyState
from hbo.policies.steps import interval_of, points_passed
from hbo.runlog import read_log
from hbo.signals import Signals

MODES = ("trajectory", "average")
LOG = "run.jsonl"
_SUM_TOLERANCE = 1e-6
_BEFORE_ANY_UPDATE = -1


@dataclass(frozen=True)
class Replay:
    """The probabilities of a recorded run: as they moved (``trajectory``), or their mean, held.

    Read from the ``update`` events of the run log, which carry what the recorded policy asked for:
    in its own unit and before floors and caps. ``trajectory`` updates at the recorded steps and
    asks for the same numbers, bit for bit; with the same mixture, seed, global batch, lag, unit,
    floors and caps the stream of examples is the recorded one, however a batch is cut. The last
    recorded law stays in force for as long as the run goes on.

    ``average`` is in force from the first draw to the last: the mean of the recorded laws, each
    weighted by the draws that it was in force for, from its ``effective_draw`` (the lag is counted)
    to the next one's, or to the last draw that the log shows.

    A resume knows the recording by its content: another log at the same path is refused.

    Example:
        >>> Replay(run="runs/never-made")
        Traceback (most recent call last):
        hbo.errors.ConfigError: run is 'runs/never-made': there is no such file or directory; ...
    """

    run: str | None = None
    """Directory of a run, or its ``run.jsonl``; relative to the working directory."""
    mode: str = "trajectory"
    """``trajectory``: law after law; ``average``: their mean, from the first draw on."""
    update_interval: int = 200
    """Optimiser steps between updates where none is replayed: ``average`` only logs them."""
    prior_temperature: float | None = None
    """The key that all policies share; takes its default only."""
    recording: str = field(init=False, default="")
    """Hash of what is replayed; no setting, but part of what a resume must find unchanged."""

    def __post_init__(self) -> None:
        fields.choice("mode", self.mode, MODES)
        fields.whole_number("update_interval", self.update_interval, 1)
        fields.shared_prior_temperature(self.prior_temperature)
        if self.run is None:
            return
        given: Any = self.run
        if given == "" or not isinstance(given, str | os.PathLike):
            raise fields.refused("run", given, f"the directory of a run, or its {LOG}", True)
        object.__setattr__(self, "run", str(Path(given)))
        object.__setattr__(self, "recording", self._laws.fingerprint)

    @cached_property
    def _laws(self) -> _Laws:
        """What is replayed; read once, when the policy is made."""
        if self.run is None:
            raise ConfigError(f"policy replay has no run; give balance.run, a directory or a {LOG}")
        path, events = _read(self.run)
        recorded = _recorded(events, path)
        return recorded if self.mode == "trajectory" else _average(recorded, events)

    @property
    def needs(self) -> frozenset[str]:
        """No signals."""
        return frozenset()

    def needs_at(self, step: int) -> frozenset[str]:
        """No signals."""
        return frozenset()

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``: one falls on every recorded step."""
        recorded = () if self.run is None else self._laws.steps
        return interval_of(recorded, self.update_interval)

    @property
    def update_at_start(self) -> bool:
        """Whether the recorded run had an update before its first step."""
        return self.run is not None and 0 in self._laws.steps[:1]

    def check_subsets(self, names: tuple[str, ...]) -> None:
        """Refuse a mixture of other subsets than the recorded one, or in another order.

        Raises:
            ConfigError: It has others.
        """
        if self.run is not None and self._laws.names != names:
            raise ConfigError(
                f"run is {self.run!r}, recorded with other subsets, or in another order "
                f"({', '.join(self._laws.names)[:200]}); replay a run on the same data"
            )

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The state before the first update: the law that the recorded run began with.

        Raises:
            ConfigError: There is no run, or it was recorded on a mixture of another shape.
        """
        shape = self._laws.laws.shape[1:]
        if shape != sizes.shape:
            raise ConfigError(
                f"run is {self.run!r}, recorded with {shape[0]} subsets of {shape[1]} groups; this "
                f"mixture has {sizes.shape[0]} of {sizes.shape[1]}; replay a run on the same data"
            )
        if self._laws.laws[:, sizes == 0].any():
            raise ConfigError(
                f"run is {self.run!r}, which drew from a group that is empty here; replay a run on "
                "the same data"
            )
        return {"step": _BEFORE_ANY_UPDATE}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) what the recorded policy asked for at the step of the last update."""
        return np.array(self._laws.laws[points_passed(self._laws.steps, state["step"])])

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The state at the step reached."""
        return {"step": int(signals.step)}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """Nothing to explain."""
        return {}


@dataclass(frozen=True, eq=False)
class _Laws:
    """Laws over the steps of a run.

    Args:
        names: Names of the K subsets.
        steps: (U,) optimiser steps, rising: where the law changes.
        laws: (U + 1, K, G) the first law, and the one that each step brings.
        starts: (U,) first draw made from each later law.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    laws: FloatArray
    starts: tuple[int, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, steps and laws."""
        digest = hashlib.sha256(json.dumps([self.names, self.steps]).encode())
        digest.update(self.laws.astype("<f8").tobytes())
        return digest.hexdigest()[:16]


def _read(run: str) -> tuple[str, list[dict[str, Any]]]:
    """The path of a run's log, and its events."""
    path = Path(run)
    try:
        if path.is_dir():
            path /= LOG
        return str(path), read_log(path)
    except (FileNotFoundError, NotADirectoryError):
        missing = f"no {LOG} in this directory" if path.name == LOG else "no such file or directory"
        raise ConfigError(
            f"run is {run!r}: there is {missing}; give the directory of a run, or its {LOG}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"run is {run!r}, which cannot be read: {reason}") from None


def _recorded(events: Sequence[Mapping[str, Any]], path: str) -> _Laws:
    """The laws that the recorded policy asked for.

    Raises:
        DataError: The log holds no updates, or damaged ones, or not all of one run.
    """
    updates = [_Update.read(event, path) for event in events if event["event"] == "update"]
    if not updates:
        raise DataError(
            "no update of probabilities is in this run log, so there is nothing to replay; where "
            "the run's policy was a fixed one, name that",
            where=path,
        )
    for one, other in pairwise(updates):
        # Each update starts from what the last one left, if all are there.
        same = one.names == other.names and np.array_equal(one.after, other.before)
        if not (same and one.step < other.step and one.start <= other.start):
            raise DataError(
                f"the updates after steps {one.step} and {other.step} do not follow one another: "
                "some are missing or damaged, or balancing began anew between them; replay another "
                "run",
                where=path,
            )
    return _Laws(
        names=updates[0].names,
        steps=tuple(update.step for update in updates),
        laws=np.stack([updates[0].before, *(update.after for update in updates)]),
        starts=tuple(update.start for update in updates),
    )


@dataclass(frozen=True, eq=False)
class _Update:
    """One ``update`` event: its step, first draw, subsets, and (K, G) laws asked for."""

    step: int
    start: int
    names: tuple[str, ...]
    before: FloatArray
    after: FloatArray

    @classmethod
    def read(cls, event: Mapping[str, Any], path: str) -> _Update:
        step, start, proposed = (event.get(k) for k in ("step", "effective_draw", "proposed"))
        if not (_is_count(step) and _is_count(start, 1)):
            raise DataError("an update without its step or effective_draw", where=path)
        if proposed is None:
            raise DataError(
                f"the update after step {step} does not say what its policy asked for: an older "
                "version wrote this log; `hbo export --format schedule` makes a schedule of it",
                where=path,
            )
        try:
            before, after = proposed["before"], proposed["after"]
            laws, names = (_law(before), _law(after)), tuple(before)
        except (TypeError, KeyError, ValueError, OverflowError):
            names, laws = (), None
        if laws is None or tuple(after) != names or laws[0].shape != laws[1].shape:
            raise DataError(
                f"the update after step {step} is damaged: `proposed` must hold probabilities that "
                "sum to 1, before and after; replay another run",
                where=path,
            )
        return cls(step, start, names, *laws)


def _is_count(value: Any, least: int = 0) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**62


def _law(table: Any) -> FloatArray:
    """(K, G) probabilities as they were written, by name.

    Raises:
        TypeError, ValueError, OverflowError: They are none.
    """
    if not isinstance(table, dict):
        raise TypeError("no table by name")
    law = np.array(list(table.values()), dtype=np.float64)
    with np.errstate(over="ignore"):
        total = law.sum()
    if law.ndim != 2 or not (law >= 0).all() or not abs(total - 1) <= _SUM_TOLERANCE:
        raise ValueError("no probabilities")
    return law


def _average(recorded: _Laws, events: Sequence[Mapping[str, Any]]) -> _Laws:
    """One law: the mean over the draws that each law was in force for."""
    edges = [0, *recorded.starts]
    said = [event.get("draws") for event in events if event["event"] == "step"]
    end = max((draws for draws in said if _is_count(draws, 1)), default=edges[-1])
    draws = np.diff(np.minimum([*edges, end], end)).astype(np.float64)
    mean = (draws[:, None, None] / draws.sum() * recorded.laws).sum(axis=0)
    return _Laws(recorded.names, (), mean[None])
