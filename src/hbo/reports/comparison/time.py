"""Policies at equal training time: validation loss when the fastest of them had finished."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hbo.reports.comparison.folder import Reported
from hbo.reports.record import FloatArray, RunRecord

NO_TIMES = "The runs do not say how long they trained, so there is no view at equal training time."
NO_CURVES = (
    "There is no view at equal training time: not every run was evaluated on the way. "
    "Set training.eval_strategy: steps (and training.eval_steps) for one."
)


def equal_time(policies: Sequence[Reported]) -> dict[str, Any]:
    """Validation macro loss of each policy at the shortest training time of all.

    The time T is the least, over policies, of the mean training time of their runs, evaluations
    left out. A run's loss at T is read off the straight line between its evaluations before and
    after; one that ended before T counts with its last.

    Args:
        policies: The policies with a run.

    Returns:
        ``seconds`` (T), ``policies``: name -> {``loss``, ``low``, ``high`` (the lowest and highest
        seed), ``step`` (where it was at T), ``end_loss``}, and ``note``, which says why there is
        nothing where ``seconds`` is null.
    """
    times = [_mean([_end(run.record) for run in policy.runs.values()]) for policy in policies]
    if not times or not all(math.isfinite(time) for time in times):
        return {"seconds": None, "policies": {}, "note": NO_TIMES}
    time = min(times)
    rows = {policy.label: _row(policy, time) for policy in policies}
    if any(row is None for row in rows.values()):
        return {"seconds": None, "policies": {}, "note": NO_CURVES}
    return {"seconds": time, "policies": rows, "note": None}


def _row(policy: Reported, time: float) -> dict[str, float] | None:
    curves = [_curve(run.record) for run in policy.runs.values()]
    if any(len(seconds) < 2 or seconds[0] > time for seconds, _, _ in curves):
        return None
    at = [float(np.interp(time, seconds, losses)) for seconds, losses, _ in curves]
    return {
        "loss": _mean(at),
        "low": min(at),
        "high": max(at),
        "step": _mean([float(np.interp(time, seconds, steps)) for seconds, _, steps in curves]),
        "end_loss": _mean([float(losses[-1]) for _, losses, _ in curves]),
    }


def _curve(record: RunRecord) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Seconds, validation macro losses and steps; of two looks at one step the last stands."""
    looks = {
        look.step: (look.seconds, float(np.mean(look.loss)), float(look.step))
        for look in record.validation
    }
    known = sorted(look for look in looks.values() if math.isfinite(look[0] + look[1]))
    seconds, losses, steps = np.array(known, dtype=float).reshape(-1, 3).T
    return seconds, losses, steps


def _end(record: RunRecord) -> float:
    """Training seconds of a whole run; where it has none of its own, those of its last look."""
    if math.isfinite(record.training_seconds):
        return record.training_seconds
    return max((look.seconds for look in record.validation), default=math.nan)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
