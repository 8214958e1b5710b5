"""What a comparison will cost, and how far each of its entries is."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbo.errors import DataError
from hbo.reports.comparison.warnings import too_few_seeds
from hbo.run import folder as files
from hbo.run.comparison import Comparison, Planned, Run

if TYPE_CHECKING:
    from hbo.run.fleet import Fleet

SCHEMA = 1
TAIL = 2**16
"""Bytes of a run log's end that show where the run is."""


def cost_of(
    comparison: Comparison, jobs: int, like: Path | None = None, *, anew: bool = False
) -> dict[str, Any]:
    """What ``hbo compare --plan`` shows: runs, steps, draws, cost of signals, time and disk.

    Time is known from finished runs only: of the entry itself, else of another entry (or ``like``)
    without its balancing, times the work of this one.

    Args:
        comparison: The runs.
        jobs: How many are made at the same time.
        like: Another finished run on such data, model and machine.
        anew: All runs are to be made again, finished ones too.

    Raises:
        DataError: ``like`` holds no finished run.
    """
    plain = _plain_seconds(comparison, like)
    entries = [_cost_of_entry(planned, plain) for planned in comparison.planned]
    if anew:
        entries = [{**entry, "finished": 0} for entry in entries]
    others = len({planned.entry.group for planned in comparison.planned}) - 1
    known = [entry["seconds"] for entry in entries if entry["seconds"] is not None]
    left = sum((entry["runs"] - entry["finished"]) * (entry["seconds"] or 0.0) for entry in entries)
    working = max(planned.disk[0] for planned in comparison.planned)
    return {
        "schema": SCHEMA,
        "output_dir": str(comparison.folder),
        "against": comparison.against,
        "seeds": list(comparison.seeds),
        "seeds_warning": too_few_seeds(len(comparison.seeds), others) or None,
        "jobs": jobs,
        "runs": len(comparison.runs),
        "finished": sum(entry["finished"] for entry in entries),
        "seconds_left": left / jobs if len(known) == len(entries) else None,
        "bytes_while_running": working * min(jobs, len(comparison.runs)),
        "bytes_with_keep_models": sum(
            planned.disk[0] * len(planned.runs) for planned in comparison.planned
        ),
        "entries": entries,
    }


def _cost_of_entry(planned: Planned, plain: float | None) -> dict[str, Any]:
    facts, entry = planned.facts, planned.entry
    share = facts["cost"]["share"]
    walls = [summary["wall_seconds"] for summary in _summaries(planned.runs)]
    estimate = None if plain is None else plain * facts["draws"] * (1.0 + share)
    return {
        "name": entry.name,
        "of": entry.of,
        "policy": entry.policy,
        "settings": dict(entry.settings),
        "set": dict(entry.set),
        "runs": len(planned.runs),
        "finished": sum(run.finished for run in planned.runs),
        "steps": facts["steps"],
        "draws": facts["draws"],
        "signals_share": share,
        "relative_cost": 1.0 + share,
        "scored": facts["scored"],
        "seconds": statistics.mean(walls) if walls else estimate,
        "warnings": facts["warnings"],
    }


def _summaries(runs: tuple[Run, ...]) -> list[dict[str, Any]]:
    return [_summary(run.folder) for run in runs if run.finished]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / files.SUMMARY).read_text(encoding="utf-8"))
        return {key: float(found[key]) for key in ("wall_seconds", "balance_seconds", "draws")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(
            "there is no finished run here; name a run directory with a summary.json",
            where=str(folder),
        ) from None


def _plain_seconds(comparison: Comparison, like: Path | None) -> float | None:
    """Seconds of a draw without balancing, all else of a run shared out to its draws."""
    found = [one for planned in comparison.planned for one in _summaries(planned.runs)]
    found = found or ([] if like is None else [_summary(like)])
    paces = [(one["wall_seconds"] - one["balance_seconds"]) / one["draws"] for one in found]
    return statistics.mean(paces) if paces else None


@dataclass(frozen=True)
class Progress:
    """Where a run is: its step, the last training loss, the last macro loss on validation."""

    step: int = 0
    loss: float | None = None
    validation: float | None = None


def progress_of(folder: Path) -> Progress:
    """What the end of a run log says, which may be written just now."""
    try:
        with (folder / files.LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return Progress()
    events = [event for event in map(_event, lines) if event is not None]
    steps = [event for event in events if event["event"] == "step"]
    measured = [event for event in events if event.get("split") == "validation"]
    return Progress(
        step=steps[-1]["step"] if steps else 0,
        loss=steps[-1].get("loss") if steps else None,
        validation=measured[-1]["macro"]["loss"] if measured else None,
    )


def _event(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        event = json.loads(line)
        if isinstance(event, dict) and "event" in event:
            return event
    return None


@dataclass(frozen=True)
class Row:
    """How far one entry is.

    Args:
        name: The entry.
        done: Runs that are finished.
        failed: Runs that failed.
        total: All its runs.
        now: What its running processes show.
        steps: Of each run.
        validation: Mean macro loss on validation, of its finished runs; ``None`` where none is.
        seconds_left: Of its runs, one after the other; ``None`` where nothing is known yet.
    """

    name: str
    done: int
    failed: int
    total: int
    now: tuple[Progress, ...]
    steps: int
    validation: float | None
    seconds_left: float | None


class Board:
    """The rows of a comparison while its runs are made.

    Args:
        comparison: The runs.
    """

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._finished: dict[Run, tuple[float, float | None]] = {}

    def rows(self, fleet: Fleet) -> list[Row]:
        """One row for each entry."""
        open_ = {*fleet.waiting, *(active.run for active in fleet.active), *fleet.failed}
        done = [
            [run for run in planned.runs if self._is_done(run, open_)]
            for planned in self._comparison.planned
        ]
        paces: dict[str, float] = {}
        for planned, runs in zip(self._comparison.planned, done, strict=True):
            walls = [self._facts(run)[0] for run in runs]
            walls += _running_paces(planned, fleet)
            if walls:
                paces[planned.entry.name] = statistics.mean(walls)
        rows = zip(self._comparison.planned, done, strict=True)
        return [self._row(planned, fleet, runs, paces) for planned, runs in rows]

    def _is_done(self, run: Run, open_: set[Run]) -> bool:
        """Whether it is finished; not every run is one of the fleet, which may only score."""
        return run in self._finished or (run not in open_ and run.finished)

    def _facts(self, run: Run) -> tuple[float, float | None]:
        """Wall seconds and validation loss of a finished run, read once."""
        if run not in self._finished:
            seconds = _summary(run.folder)["wall_seconds"]
            self._finished[run] = seconds, progress_of(run.folder).validation
        return self._finished[run]

    def _row(
        self, planned: Planned, fleet: Fleet, done: Sequence[Run], paces: Mapping[str, float]
    ) -> Row:
        losses = [loss for _, loss in map(self._facts, done) if loss is not None]
        active = [one.run for one in fleet.active if one.run in planned.runs]
        now = tuple(progress_of(run.folder) for run in active)
        pace = paces.get(planned.entry.name)
        if pace is None and paces:
            pace = statistics.mean(paces.values())
        steps = planned.facts["steps"]
        failed = sum(run in fleet.failed for run in planned.runs)
        left = len(planned.runs) - len(done) - failed
        begun = sum(min(1.0, one.step / steps) for one in now)
        return Row(
            name=planned.entry.name,
            done=len(done),
            failed=failed,
            total=len(planned.runs),
            now=now,
            steps=steps,
            validation=statistics.mean(losses) if losses else None,
            seconds_left=None if pace is None else (left - begun) * pace,
        )


def _running_paces(planned: Planned, fleet: Fleet) -> list[float]:
    """Seconds that the running processes of an entry would take for a whole run."""
    found = []
    for active in fleet.active:
        if active.run not in planned.runs:
            continue
        share = (progress_of(active.run.folder).step - active.step_before) / active.run.steps
        if share > 0:
            found.append((time.monotonic() - active.began) / share)
    return found
