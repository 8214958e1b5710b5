"""How fast a reward falls: a regression on the logarithm of time that forgets what is long past."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.mixture import FloatArray
from hbo.policies.cells import from_plain, to_plain

FORGETTING = 2.0
"""A measurement at step s weighs (s / t)^2 at step t: half of its weight is gone at t = 1.4 s."""
LEAST = 3
"""Measurements that a line is drawn through, at least."""


@dataclass(frozen=True, eq=False)
class Trend:
    """The weighted sums of a line through rewards over ln(step), for each of K arms.

    A loss that falls as a power of the steps, a + c t^-e, falls by c e t^-e in a unit of ln(t):
    in proportion to what is left to learn. The first steps, where a model takes on a format, would
    hide that; so weights fall with a power of time.

    Args:
        sums: (5, K) sums of w, w x, w y, w x^2 and w x y, x being ln(step) and y the reward.
        counts: (K,) measurements.
        step: Of the last measurement; 0 before any.
    """

    sums: FloatArray
    counts: FloatArray
    step: int

    @classmethod
    def start(cls, arms: int) -> Trend:
        """Nothing is known."""
        return cls(np.zeros((5, arms)), np.zeros(arms), 0)

    def seen(self, step: int, values: FloatArray) -> Trend:
        """With the measurements of ``step``; NaN: none. What comes at step 0 has no logarithm."""
        if step <= 0:
            return self
        known = np.isfinite(values)
        x, y = math.log(step), np.where(known, values, 0.0)
        new = np.stack([np.ones_like(y), np.full_like(y, x), y, np.full_like(y, x * x), x * y])
        faded = self.sums * (self.step / step) ** FORGETTING
        return Trend(faded + np.where(known, new, 0.0), self.counts + known, step)

    @property
    def fall(self) -> FloatArray:
        """(K,) fall of the reward per unit of ln(step); NaN after fewer than three measurements."""
        weight, x, y, xx, xy = self.sums
        with np.errstate(all="ignore"):
            slope = (xy - x * y / weight) / (xx - x * x / weight)
        return np.where((self.counts >= LEAST) & np.isfinite(slope), -slope, np.nan)

    def to_json(self) -> dict[str, Any]:
        """A plain dict for a policy's state."""
        return {"sums": to_plain(self.sums), "counts": to_plain(self.counts), "step": self.step}

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Trend:
        """The inverse of ``to_json``."""
        return cls(from_plain(state["sums"]), from_plain(state["counts"]), state["step"])


def steepness(fall: FloatArray, factor: float) -> FloatArray:
    """Falls over their median, cut to [1 / factor, factor].

    Args:
        fall: (K,) NaN where unknown: the median stands in. Where it rises, the least is given.
        factor: How far one may be from the median.

    Returns:
        (K,); all 1 where nothing falls.

    Example:
        >>> steepness(np.array([0.1, 0.2, 2.0, -0.1, np.nan]), 4.0).tolist()
        [0.5, 1.0, 4.0, 0.25, 1.0]
    """
    falling = fall[np.isfinite(fall) & (fall > 0)]
    if not falling.size:
        return np.ones_like(fall)
    relative = fall / np.median(falling)
    return np.where(np.isfinite(fall), np.clip(relative, 1.0 / factor, factor), 1.0)
