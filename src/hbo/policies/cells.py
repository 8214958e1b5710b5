"""From sizes to the two levels of a prior, and back to one probability per cell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hbo import priors
from hbo.mixture import FloatArray, IntArray


def two_level_prior(
    sizes: IntArray, weights: FloatArray | None, temperature: float
) -> tuple[FloatArray, FloatArray]:
    """Probability of each subset, and of each group given its subset, before any update.

    q(i) ~ n_i^(1/T) over subsets, with n_i the size of subset i (or the weight that the user gave)
    and T ``temperature``; inside a subset a group's share is its size, so that with T = 1 every
    example is equally likely. Groups have equal counts, so this is the paper's uniform start.

    Eq. 3 of arXiv 2505.12300.

    Args:
        sizes: (K, G) size of each cell.
        weights: (K,) given shares, or ``None``.
        temperature: 1 is proportional, infinity uniform.

    Returns:
        (K,) and (K, G); each sums to 1 over its last axis.

    Example:
        >>> subsets, groups = two_level_prior(np.array([[3, 3], [1, 1]]), None, 1.0)
        >>> subsets.round(6).tolist(), groups[0].tolist()
        ([0.75, 0.25], [0.5, 0.5])
    """
    cells = np.asarray(sizes, dtype=np.float64)
    totals = cells.sum(axis=1)
    base = totals if weights is None else priors.given(np.asarray(weights, dtype=np.float64))
    return priors.temperature(base, temperature), cells / totals[:, None]


def joint(subsets: FloatArray, groups: FloatArray) -> FloatArray:
    """(K, G) probability of each cell: p(subset) x p(group given subset)."""
    return np.asarray(subsets[:, None] * groups, dtype=np.float64)


def to_plain(values: FloatArray) -> list[Any]:
    """Nested lists for JSON, ``None`` where a value is not finite."""
    objects = np.asarray(values, dtype=np.float64).astype(object)
    objects[~np.isfinite(values)] = None
    return list(objects.tolist())


def from_plain(values: Iterable[Any]) -> FloatArray:
    """The inverse of ``to_plain``: NaN where there is ``None``."""
    return np.array(values, dtype=np.float64)
