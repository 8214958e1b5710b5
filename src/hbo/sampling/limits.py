"""Floors and caps on the subsets' shares, and caps on how often a subset is repeated."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hbo.errors import ConfigError, StateError
from hbo.mixture import FloatArray, IntArray

_TOLERANCE = 1e-9
_NEGLIGIBLE = 1e-200  # a smaller share counts as 0: its factor would leave floating point


@dataclass(frozen=True, eq=False)
class Limits:
    """What a user allows each subset, whatever the policy says.

    Args:
        min_share: (K,) least share of draws, from 0 (no floor) to 1.
        max_share: (K,) greatest share of draws, above 0, up to 1 (no cap).
        max_passes: (K,) most passes over the subset's examples in the whole run; infinity for no
            cap.

    Example:
        >>> limits = Limits(np.array([0.0, 0.2]), np.array([1.0, 1.0]), np.array([np.inf, 4.0]))
        >>> limits.apply(np.array([[0.6, 0.3], [0.05, 0.05]])).round(3).tolist()
        [[0.533, 0.267], [0.1, 0.1]]
    """

    min_share: FloatArray
    max_share: FloatArray
    max_passes: FloatArray

    def __post_init__(self) -> None:
        shapes = set()
        for name in ("min_share", "max_share", "max_passes"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.setflags(write=False)
            shapes.add(values.shape)
            object.__setattr__(self, name, values)
        if len(shapes) != 1 or self.min_share.ndim != 1:
            raise ConfigError(f"limits need one number per subset in each field, got {shapes}")

    @classmethod
    def none(cls, num_subsets: int) -> Limits:
        """No floors and no caps."""
        ones = np.ones(num_subsets)
        return cls(0 * ones, ones, np.inf * ones)

    def check(self, names: Sequence[str]) -> None:
        """Refuse limits that nothing can satisfy.

        Args:
            names: Names of the K subsets, for the messages.

        Raises:
            ConfigError: A share or a number of passes out of range, a floor above its cap, floors
                that sum to over 1, caps that sum to under 1.
        """
        for name, low, high, passes in zip(
            names, self.min_share, self.max_share, self.max_passes, strict=True
        ):
            if not 0 <= low <= 1:
                raise ConfigError(f"datasets.{name}.min_share must be from 0 to 1, got {low:g}")
            if not 0 < high <= 1:
                raise ConfigError(
                    f"datasets.{name}.max_share must be above 0 and at most 1, got {high:g}"
                )
            if not passes > 0:
                raise ConfigError(f"datasets.{name}.max_passes must be above 0, got {passes:g}")
            if low > high:
                raise ConfigError(
                    f"datasets.{name}.min_share {low:g} is above its max_share {high:g}; "
                    "lower one or raise the other"
                )
        floors, caps = self.min_share.sum(), self.max_share.sum()
        if floors > 1 + _TOLERANCE:
            raise ConfigError(
                f"the min_share of all subsets sum to {floors:g}, above 1; lower some of them"
            )
        if caps < 1 - _TOLERANCE:
            raise ConfigError(
                f"the max_share of all subsets sum to {caps:g}, below 1; raise some of them"
            )

    def apply(self, probabilities: FloatArray, sizes: IntArray | None = None) -> FloatArray:
        """Bring the subsets' shares inside the limits, changing them as little as can be.

        With m_k the share of subset k, the result has shares clip(s m_k, min_share_k, max_share_k)
        for the one factor s that makes them sum to 1: subsets that no limit touches keep their
        ratios, the order of the subsets does not matter, and applying it twice changes nothing.
        Inside a subset the groups keep their ratios, so an empty cell stays at 0.

        Args:
            probabilities: (K, G) joint probabilities, sum 1.
            sizes: (K, G) examples in each cell: how a subset whose share was 0 spreads what a floor
                (or the caps of all the others) gives it.

        Returns:
            (K, G) joint probabilities; the input itself where it keeps the limits already.

        Raises:
            StateError: A subset of share 0 must get some and ``sizes`` are not given.
            ConfigError: The limits contradict each other (``check`` says how).
        """
        shares = probabilities.sum(axis=1)
        low, high = self.min_share, self.max_share
        if (shares >= low - _TOLERANCE).all() and (shares <= high + _TOLERANCE).all():
            return probabilities
        wanted = project_shares(shares, low, high)
        raised = (shares <= _NEGLIGIBLE) & (wanted > 0)
        if raised.any() and sizes is None:
            raise StateError(
                f"subset number {int(np.flatnonzero(raised)[0])} has probability 0 but its limits "
                "give it a share; give it a positive weight or remove its min_share"
            )
        shapes = probabilities if sizes is None else np.where(raised[:, None], sizes, probabilities)
        totals = shapes.sum(axis=1)
        scale = np.divide(wanted, totals, out=np.zeros_like(wanted), where=totals > 0)
        return np.asarray(shapes * scale[:, None], dtype=np.float64)

    def max_draws(self, subset_sizes: ArrayLike) -> IntArray:
        """Most draws of each subset: ``max_passes`` x rows, rounded down; -1 where there is no cap.

        Args:
            subset_sizes: (K,) examples in each subset.

        Example:
            >>> Limits(np.zeros(2), np.ones(2), np.array([0.29, np.inf])).max_draws(
            ...     [100, 7]
            ... ).tolist()
            [29, -1]
        """
        rows = np.asarray(subset_sizes, dtype=np.float64)
        capped = np.isfinite(self.max_passes)
        # 0.29 x 100 is 28.999999999999996 in floating point; a user means 29.
        draws = np.floor(np.where(capped, self.max_passes, 0.0) * rows * (1 + 1e-12))
        return np.where(capped, np.minimum(draws, 2.0**62), -1).astype(np.int64)


def project_shares(shares: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """clip(s x shares, low, high) for the factor s at which the sum is 1.

    The sum grows with s, in straight pieces between the points where a share meets a limit: a
    binary search over the sorted points finds the piece, and the factor inside it is closed form.
    What the positive shares cannot hold under their caps goes to subsets of share 0, evenly.

    Args:
        shares: (K,) at least 0, sum 1.
        low: (K,) floors.
        high: (K,) caps.

    Returns:
        (K,) shares inside the limits, sum 1.

    Raises:
        ConfigError: The floors sum to over 1, or the caps to under 1.
    """
    if low.sum() > 1 + _TOLERANCE or high.sum() < 1 - _TOLERANCE or (low > high).any():
        raise ConfigError("no shares satisfy the limits: floors over 1, caps under 1, or crossed")
    positive = shares > _NEGLIGIBLE
    spare = 1 - np.where(positive, high, low).sum()
    if spare <= _TOLERANCE:
        return _fill(np.where(positive, shares, 0.0), low, high, 1.0)
    result = high.copy()
    idle = ~positive
    result[idle] = _fill(np.ones(idle.sum()), low[idle], high[idle], 1 - high[positive].sum())
    return result


def _fill(weights: FloatArray, low: FloatArray, high: FloatArray, total: float) -> FloatArray:
    """clip(s x weights, low, high) for the s at which it sums to ``total``."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        leaves_floor = np.where(weights > 0, low / weights, np.inf)
        meets_cap = np.where(weights > 0, high / weights, np.inf)
        points = np.unique(np.concatenate(([0.0], leaves_floor, meets_cap)))
        points = points[np.isfinite(points)]

        def filled(factor: float) -> FloatArray:
            return np.clip(factor * weights, low, high)

        first = bisect_right(points, total, key=lambda point: filled(float(point)).sum()) - 1
        left = points[max(first, 0)]
        free = (leaves_floor <= left) & (meets_cap > left)
        if not weights[free].any():
            return filled(left)
        return filled((total - filled(left)[~free].sum()) / weights[free].sum())
