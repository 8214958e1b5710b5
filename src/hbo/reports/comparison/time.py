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
CUT_SHORT = (
    "There is no view at equal training time: the last evaluation of {label} (step {look} of "
    "{steps}) came before it. Set training.eval_steps so that the last step is evaluated."
)


def equal_time(policies: Sequence[Reported]) -> dict[str, Any]:
    """Validation macro loss of each policy at the shortest training time of all.

    The time T is the least, over policies, of the mean training time of their runs, evaluations
    left out. A run's loss at T is read off the straight line between the trainer's evaluations
    before and after; one that ended before T counts with that of its last step. Our own look at
    the end weighs tokens otherwise than the trainer's, and is no point of the line.

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
    note = next((note for policy in policies if (note := _lacking(policy, time))), None)
    if note is not None:
        return {"seconds": None, "policies": {}, "note": note}
    rows = {policy.label: _row(policy, time) for policy in policies}
    return {"seconds": time, "policies": rows, "note": None}


def _lacking(policy: Reported, time: float) -> str | None:
    """Why a policy has no loss at that time; None where it has one."""
    for run in policy.runs.values():
        seconds, _, steps = _curve(run.record)
        if len(seconds) < 2 or seconds[0] > time:
            return NO_CURVES
        look, last = int(steps[-1]), run.record.last_step
        if seconds[-1] < time and look < last:
            return CUT_SHORT.format(label=policy.label, look=look, steps=last)
    return None


def _row(policy: Reported, time: float) -> dict[str, float]:
    records = [run.record for run in policy.runs.values()]
    curves = [_curve(record) for record in records]
    at = [float(np.interp(time, seconds, losses)) for seconds, losses, _ in curves]
    ends = [
        float(losses[-1]) if steps[-1] >= record.last_step else math.nan
        for record, (_, losses, steps) in zip(records, curves, strict=True)
    ]
    return {
        "loss": _mean(at),
        "low": min(at),
        "high": max(at),
        "step": _mean([float(np.interp(time, seconds, steps)) for seconds, _, steps in curves]),
        "end_loss": _mean(ends),
    }


def _curve(record: RunRecord) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Seconds, validation macro losses and steps of the trainer's looks, the last of each step."""
    looks = {
        look.step: (look.seconds, float(np.mean(look.loss)), float(look.step))
        for look in record.validation
        if not look.ours
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
