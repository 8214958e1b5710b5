"""The mixture that a run learned: over its course, and averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.errors import DataError
from hbo.reports.record import FloatArray, RunRecord

DIGITS = 6


@dataclass(frozen=True)
class Point:
    """Probabilities decided at one step.

    Args:
        step: Optimiser step of the decision; 0 for the prior.
        effective_draw: First draw made from them.
        probabilities: One array of groups per subset; they sum to 1 over all.
    """

    step: int
    effective_draw: int
    probabilities: tuple[FloatArray, ...]

    @property
    def shares(self) -> FloatArray:
        """(K,) shares of draws."""
        return np.array([float(groups.sum()) for groups in self.probabilities])


@dataclass(frozen=True)
class LearnedMixture:
    """A run's mixture, ready to be written in another tool's words.

    Args:
        subsets: Names, in the configuration's order.
        sources: For each subset, its section of the configuration.
        rows: Training rows of each subset; None where the run did not get to say.
        points: The trajectory; the first is the prior.
        lag: Optimiser steps between a decision and its first draw.
        average: (K,) draw-weighted average of the shares; sums to 1 exactly in decimals.
        final: (K,) the last shares, likewise.
    """

    subsets: tuple[str, ...]
    sources: tuple[Mapping[str, Any], ...]
    rows: tuple[int, ...] | None
    points: tuple[Point, ...]
    lag: int
    average: FloatArray
    final: FloatArray


def learned_mixture(run: RunRecord) -> LearnedMixture:
    """What a run learned.

    The average is over draws: each law counts for as many draws as were made from it.

    Args:
        run: A run with at least one update, or with its final probabilities.

    Raises:
        DataError: The run logged no probabilities yet, or damaged ones.
    """
    points = _points(run)
    for shares in (run.target, points[-1].shares):
        if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
            raise DataError(
                "the logged probabilities are damaged: they are no shares; restore run.jsonl",
                where=str(run.folder),
            )
    configured = run.config.get("datasets")
    sources = configured if isinstance(configured, dict) else {}
    training = run.config.get("training")
    packed = isinstance(training, dict) and bool(training.get("packing"))  # rows, not records
    known = not packed and bool(len(run.examples)) and bool(np.isfinite(run.examples).all())
    return LearnedMixture(
        subsets=run.subsets,
        sources=tuple(_section(sources.get(name)) for name in run.subsets),
        rows=tuple(int(rows) for rows in run.examples) if known else None,
        points=points,
        lag=_lag(run),
        average=rounded_shares(run.target),
        final=rounded_shares(points[-1].shares),
    )


def rounded_shares(shares: FloatArray) -> FloatArray:
    """Shares with ``DIGITS`` decimals that still sum to 1: the largest remainders are rounded up.

    Args:
        shares: (K,) not negative.

    Example:
        >>> rounded_shares(np.array([1.0, 1.0, 1.0])).tolist()
        [0.333334, 0.333333, 0.333333]
    """
    scaled = np.asarray(shares, dtype=np.float64) / np.sum(shares) * 10**DIGITS
    units = np.floor(scaled)
    missing = round(10**DIGITS - float(units.sum()))
    units[np.argsort(-(scaled - units), kind="stable")[:missing]] += 1
    return np.asarray(np.round(units / 10**DIGITS, DIGITS), dtype=np.float64)


def _section(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _points(run: RunRecord) -> tuple[Point, ...]:
    first = _first_law(run)
    points = [Point(0, 0, first)]
    for update in run.updates:
        inside = [_inside(groups) for groups in points[-1].probabilities]
        for k, local in enumerate(update.local):
            if local is not None and np.isfinite(local.after).all():
                inside[k] = local.after
        law = tuple(
            float(np.nan_to_num(share)) * groups
            for share, groups in zip(update.after, inside, strict=True)
        )
        draw = update.effective_draw
        points.append(Point(update.step, draw if draw is not None else 0, law))
    return tuple(points)


def _first_law(run: RunRecord) -> tuple[FloatArray, ...]:
    if not run.updates:
        if run.probabilities is None:
            raise DataError(
                "this run logged no probabilities yet; export it after its first update or its end",
                where=str(run.folder),
            )
        return run.probabilities
    update = run.updates[0]
    law = []
    for k, share in enumerate(update.before):
        local = update.local[k]
        if local is not None and np.isfinite(local.before).all():
            inside = local.before
        else:
            inside = np.full(_groups_of(run, k), 1.0 / _groups_of(run, k))
        law.append(float(np.nan_to_num(share)) * inside)
    return tuple(law)


def _groups_of(run: RunRecord, k: int) -> int:
    if run.probabilities is not None:
        return max(len(run.probabilities[k]), 1)
    return max([len(u.local[k].after) for u in run.updates if u.local[k] is not None] or [1])  # type: ignore[union-attr]


def _inside(groups: FloatArray) -> FloatArray:
    """Shares inside a subset; equal ones where the subset has no share at all."""
    total = groups.sum()
    return groups / total if total > 0 else np.full(len(groups), 1.0 / len(groups))


def _lag(run: RunRecord) -> int:
    for update in run.updates:
        return max(round(update.effective_step) - update.step, 1)
    balance = run.config.get("balance")
    lag = balance.get("lag") if isinstance(balance, dict) else None
    return lag if isinstance(lag, int) and lag > 0 else 1
