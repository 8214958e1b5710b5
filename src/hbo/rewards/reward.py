"""What a reward is, and how cell means become the mean of a subset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.signals import Signals, SignalTable

Measured = tuple[FloatArray, FloatArray]
"""Values and their standard errors, of one shape; NaN in either where it is unknown."""


@dataclass(frozen=True)
class Reward:
    """What an actor is paid, read from the training state.

    Args:
        name: Its key in ``GLOBAL_REWARDS`` or ``LOCAL_REWARDS``.
        needs: Names of the signals (``hbo.signals``) that it reads.
        compute: Signals -> values and standard errors: (K,) each for a global reward, (K, G) each
            for a local one. NaN where nothing was measured.
    """

    name: str
    needs: frozenset[str]
    compute: Callable[[Signals], Measured]


def cell_values(table: SignalTable) -> Measured:
    """Mean and standard error of each cell, (K, G).

    A cell with one value has no standard error of its own; the spread inside the other cells of its
    subset stands in.
    """
    return table.mean, _cell_errors(table)


def subset_values(table: SignalTable, sizes: IntArray) -> Measured:
    """Mean and standard error of each subset, (K,), as if its examples were drawn uniformly.

    A policy draws some groups more than others, so the plain mean of what was seen is not the mean
    of the subset. Cells are weighted by their size instead (stratified sampling): with w_g the
    share of group g among the measured cells, mean = sum_g w_g m_g, error^2 = sum_g w_g^2 e_g^2.

    Args:
        table: One signal.
        sizes: (K, G) examples per cell.

    Example:
        >>> table = SignalTable.empty(1, 2).with_values(
        ...     np.array([0, 0, 0, 1]), np.array([1.0, 1, 1, 3])
        ... )
        >>> subset_values(table, np.array([[5, 5]]))[0].item()  # the plain mean would be 1.5
        2.0
    """
    return weighted_mean(table.mean, _cell_errors(table), sizes)


def weighted_mean(values: FloatArray, errors: FloatArray, sizes: IntArray) -> Measured:
    """Size-weighted mean over the known cells of each row, and its standard error.

    Args:
        values: (K, G), NaN where unknown.
        errors: (K, G), NaN where unknown; then the error of the subset is unknown as well.
        sizes: (K, G) weights.
    """
    known = np.isfinite(values)
    weights = np.where(known, sizes, 0).astype(np.float64)
    total = weights.sum(axis=-1)
    shares = weights / np.where(total > 0, total, 1.0)[..., None]
    mean = np.where(known, shares * np.where(known, values, 0.0), 0.0).sum(axis=-1)
    with np.errstate(over="ignore"):  # an error too large to square is infinite
        variance = np.where(known, (shares * np.where(known, errors, 0.0)) ** 2, 0.0).sum(axis=-1)
    return np.where(total > 0, mean, np.nan), np.where(total > 0, np.sqrt(variance), np.nan)


def _cell_errors(table: SignalTable) -> FloatArray:
    counts = table.counts
    with np.errstate(over="ignore", invalid="ignore"):  # of values too large: unknown, not a fault
        errors = table.standard_error
        freedom = np.maximum(counts - 1, 0.0)
        spread = np.where(counts > 1, errors**2 * counts * freedom, 0.0).sum(axis=-1, keepdims=True)
        freedom = freedom.sum(axis=-1, keepdims=True)
        pooled = np.where(freedom > 0, spread / np.maximum(freedom, 1.0), np.nan)
        borrowed = np.sqrt(pooled / np.maximum(counts, 1.0))
    return np.where(counts > 1, errors, np.where(counts > 0, borrowed, np.nan))
