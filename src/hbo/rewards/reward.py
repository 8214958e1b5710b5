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


def entry(name: str, compute: Callable[[Signals], Measured], *needs: str) -> tuple[str, Reward]:
    """A line of a table of rewards: its key, and the reward that reads the signals ``needs``."""
    return name, Reward(name, frozenset(needs), compute)


PRIOR_FREEDOM = 4.0
"""How many degrees of freedom the pooled variance counts for beside a cell's own."""


def cell_values(table: SignalTable) -> Measured:
    """Mean and standard error of each cell, (K, G): see ``cell_errors``."""
    return table.mean, cell_errors(table)


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
    return weighted_mean(table.mean, cell_errors(table), sizes)


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


def cell_errors(table: SignalTable) -> FloatArray:
    """(K, G) standard error of each cell's mean; NaN where a cell was not measured.

    Cells hold a handful of values, often one or two, whose own spread says next to nothing: two
    values that happen to be alike would pass for certain. So variances borrow from each other. With
    S the sum of squares about the mean, f the degrees of freedom and d = ``PRIOR_FREEDOM``::

        v0 m_k^2   one coefficient of variation for all: v0 = sum_k (S_k / m_k^2) / sum_k f_k
        v_k  = (S_k  + d v0 m_k^2) / (f_k  + d)        of subset k, with mean m_k
        v_kg = (S_kg + d v_k)      / (f_kg + d)        of cell (k, g), with n values
        error = sqrt(v_kg / n)

    Where no cell has two values, S and f are about the mean of the subset instead: too large where
    its groups differ, which errs on the side of caution. Where nothing can be said, errors are
    unknown.

    Ours (the form of an empirical-Bayes variance: Smyth 2004, with a fixed d).
    """
    counts, groups = table.counts, (-1, 1)
    total = counts.sum(axis=-1).reshape(groups)
    with np.errstate(all="ignore"):  # of values too large: unknown, not a fault
        mean = table.sums.sum(axis=-1).reshape(groups) / total
        inside = np.where(counts > 0, table.squares - table.sums**2 / counts, 0.0)
        freedom = np.maximum(counts - 1.0, 0.0)
        subset, subset_freedom = (part.sum(axis=-1).reshape(groups) for part in (inside, freedom))
        if not subset_freedom.any():
            subset = table.squares.sum(axis=-1).reshape(groups) - total * mean**2
            subset_freedom = np.maximum(total - 1.0, 0.0)
        subset = np.maximum(subset, 0.0)  # rounding can leave a tiny negative number
        usable = np.isfinite(subset) & (mean**2 > 0) & (subset_freedom > 0)
        relative = np.where(usable, subset / mean**2, 0.0).sum() / subset_freedom[usable].sum()
        shared = np.where(np.isfinite(relative), PRIOR_FREEDOM, 0.0)
        common = np.where(shared > 0, relative * mean**2, 0.0)
        variance = (subset + shared * common) / (subset_freedom + shared)
        own = np.maximum(inside, 0.0) + PRIOR_FREEDOM * variance
        errors = np.sqrt(own / (freedom + PRIOR_FREEDOM) / counts)
    return np.where((counts > 0) & np.isfinite(errors), errors, np.nan)
