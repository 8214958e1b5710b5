"""A policy that follows a list written beforehand: step -> probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, joint, two_level_prior
from hbo.policies.steps import interval_of, points_passed
from hbo.signals import Signals

Point = tuple[int, tuple[tuple[float, ...], ...]]
"""Step, and one row for each subset: (share,) or (group, ...)."""

POINT_FORM = (
    "a list of {step: S, weights: [one number per subset]} or {step: S, probabilities: [one list "
    "of group numbers per subset]} with steps rising from 0"
)


@dataclass(frozen=True)
class Schedule:
    """Probabilities by optimiser step: held from point to point, or interpolated between them.

    A point's numbers are normalised. ``weights`` are shares of subsets, split inside a subset by
    group size; ``probabilities`` give every cell (empty ones are left out, the rest takes over).
    A point at step S is in force from the update at S on: ``lag`` steps later, like any update.

    Example:
        >>> policy = Schedule(
        ...     points=[{"step": 0, "weights": [1, 1]}, {"step": 50, "weights": [3, 1]}]
        ... )
        >>> policy.interval, policy.probabilities(policy.init(np.array([[8], [2]]))).tolist()
        (50, [[0.5], [0.5]])
    """

    points: Any = ()
    """List of points; see ``POINT_FORM``. Kept as tuples (step, rows)."""
    interpolation: str = "hold"
    """``hold``: piecewise constant. ``linear``: between points, at every update."""
    update_interval: int = 200
    """Optimiser steps between updates (``linear``, or fewer than two points)."""
    prior_temperature: float | None = None
    """The key that all policies share; takes its default only."""

    def __post_init__(self) -> None:
        fields.choice("interpolation", self.interpolation, ("hold", "linear"))
        fields.whole_number("update_interval", self.update_interval, 1)
        fields.shared_prior_temperature(self.prior_temperature)
        object.__setattr__(self, "points", _read_points(self.points))

    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        """No signals."""
        return frozenset()

    def needs_at(self, step: int) -> frozenset[str]:
        """No signals."""
        return frozenset()

    @property
    def interval(self) -> int:
        """Steps between updates: with ``hold`` one falls on every point, so none comes late."""
        if self.interpolation == "linear":
            return self.update_interval
        return interval_of([step for step, _ in self.points], self.update_interval)

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """The points as cell probabilities, and step 0.

        Raises:
            ConfigError: There is no point, or one does not fit the mixture.
        """
        if not self.points:
            raise ConfigError(f"policy schedule has no points; give balance.points, {POINT_FORM}")
        tables = [_cells(step, rows, sizes).tolist() for step, rows in self.points]
        return {"step": 0, "steps": [step for step, _ in self.points], "tables": tables}

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) what the schedule says at the step of the last update."""
        steps, step = state["steps"], state["step"]
        index = max(points_passed(steps, step) - 1, 0)
        here = from_plain(state["tables"][index])
        if self.interpolation == "hold" or index + 1 == len(steps) or step < steps[0]:
            return here
        share = float((step - steps[index]) / (steps[index + 1] - steps[index]))
        return (1.0 - share) * here + share * from_plain(state["tables"][index + 1])

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """The same state, at the step reached."""
        return {**state, "step": int(signals.step)}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """Nothing to explain."""
        return {}


def _read_points(points: Any) -> tuple[Point, ...]:
    if not isinstance(points, Sequence) or isinstance(points, str):
        raise fields.refused("points", points, POINT_FORM)
    read = tuple(_read_point(point) for point in points)
    steps = [step for step, _ in read]
    if steps != sorted(set(steps)):
        raise ConfigError(f"points has steps {steps}; allowed: {POINT_FORM}")
    return read


def _read_point(point: Any) -> Point:
    if isinstance(point, Mapping) and len(point) == 2 and "step" in point:
        step, values = point["step"], point.get("weights", point.get("probabilities"))
    elif isinstance(point, Sequence) and len(point) == 2:
        step, values = point
    else:
        raise fields.refused("a point", point, POINT_FORM)
    fields.whole_number("step of a point", step, 0)
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise fields.refused("a point", point, POINT_FORM)
    nested = [value if isinstance(value, Sequence) else (value,) for value in values]
    for entry in (entry for row in nested for entry in row):
        fields.number("an entry of a point", entry, 0.0)
    return step, tuple(tuple(float(entry) for entry in row) for row in nested)


def _cells(step: int, rows: Sequence[Sequence[float]], sizes: IntArray) -> FloatArray:
    if len(rows) != len(sizes):
        raise ConfigError(f"the point at step {step} has {len(rows)} rows for {len(sizes)} subsets")
    lengths = {len(row) for row in rows}
    if lengths == {1}:
        weights = np.array([row[0] for row in rows])
        _check_positive(step, weights)
        return joint(*two_level_prior(sizes, weights, 1.0))
    if lengths != {sizes.shape[1]}:
        raise ConfigError(
            f"the point at step {step} has rows of {sorted(lengths)} numbers; allowed: "
            f"{sizes.shape[1]}, one for each group, or 1"
        )
    table = np.where(sizes > 0, np.array(rows), 0.0)
    _check_positive(step, table)
    return np.asarray(table / table.sum(), dtype=np.float64)


def _check_positive(step: int, values: FloatArray) -> None:
    if not values.sum() > 0:
        raise ConfigError(f"the point at step {step} gives every cell that has examples 0")
