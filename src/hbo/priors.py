"""Probabilities of the subsets before anything is learned: Eq. (3) of the paper, and its limits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbo.errors import ConfigError

FloatArray = NDArray[np.float64]


def proportional(sizes: ArrayLike) -> FloatArray:
    """Each subset in proportion to its size: ``temperature`` 1.

    Args:
        sizes: (K,) examples (or tokens) in each subset.

    Returns:
        (K,) probabilities.

    Example:
        >>> proportional([3, 1]).tolist()
        [0.75, 0.25]
    """
    return temperature(sizes, 1.0)


def uniform(sizes: ArrayLike) -> FloatArray:
    """Every subset alike, whatever its size: ``temperature`` infinity.

    Example:
        >>> uniform([3, 1]).tolist()
        [0.5, 0.5]
    """
    return temperature(sizes, math.inf)


def temperature(sizes: ArrayLike, prior_temperature: float) -> FloatArray:
    """Sizes flattened by a temperature.

    With q_k = n_k / sum(n), n_k = ``sizes`` of subset k and T = ``prior_temperature``::

        p_k = q_k^(1/T) / sum_i q_i^(1/T)

    Eq. (3) of arXiv 2505.12300 (there tau for T). T = 1 is proportional, T = infinity uniform, T
    below 1 favours the large. A subset of size 0 has probability 0 at any temperature. Computed
    from logarithms, so sizes from 1 to 10^12 and any temperature neither overflow nor vanish.

    Args:
        sizes: (K,) examples, tokens or given weights; at least 0, one of them positive.
        prior_temperature: T, above 0; may be infinite.

    Returns:
        (K,) probabilities.

    Raises:
        ConfigError: A size is negative or not finite, all are 0, or T is not above 0.

    Example:
        >>> temperature([400, 100], 2.0).round(6).tolist()
        [0.666667, 0.333333]
    """
    amounts = _checked(sizes, "sizes")
    if not prior_temperature > 0:
        raise ConfigError(
            f"prior_temperature must be above 0 (1 = proportional, inf = uniform), "
            f"got {prior_temperature!r}"
        )
    positive = amounts > 0
    logs = np.log(amounts[positive])
    with np.errstate(over="ignore"):  # the logarithm of a share that rounds to 0
        powers = np.exp((logs - logs.max()) / prior_temperature)
    probabilities = np.zeros_like(amounts)
    probabilities[positive] = powers / powers.sum()
    return probabilities


def given(weights: ArrayLike) -> FloatArray:
    """Shares that the user chose, normalised.

    Args:
        weights: (K,) at least 0, one of them positive.

    Raises:
        ConfigError: A weight is negative or not finite, or all are 0.

    Example:
        >>> given([0.6, 1.4]).tolist()
        [0.3, 0.7]
    """
    shares = _checked(weights, "weights")
    shares = shares / shares.max()  # so that the sum of huge weights stays finite
    return np.asarray(shares / shares.sum(), dtype=np.float64)


def _checked(values: ArrayLike, what: str) -> FloatArray:
    amounts = np.array(values, dtype=np.float64)
    if amounts.ndim != 1 or not amounts.size:
        raise ConfigError(f"{what} must be one number per subset, got shape {amounts.shape}")
    wrong = ~np.isfinite(amounts) | (amounts < 0)
    if wrong.any():
        raise ConfigError(f"{what} must be finite and at least 0, got {amounts[wrong][0]:g}")
    if not amounts.any():
        raise ConfigError(f"{what} are all 0: at least one subset needs a positive one")
    return amounts
