"""Keep probabilities between floors and caps."""

from __future__ import annotations

import numpy as np

from hbo.mixture import FloatArray

HALVINGS = 100


def within_bounds(probabilities: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Scale each row by one factor and clip, so that it respects its bounds and still sums to 1.

    q_i = min(max(c p_i, low_i), high_i) with the factor c found by bisection: arms that no bound
    touches keep their proportions. Rows already inside their bounds come back as they are.

    Args:
        probabilities: (..., A), each row summing to 1.
        low: (..., A), each row summing to at most 1.
        high: (..., A), >= ``low``, each row summing to at least 1.

    Returns:
        (..., A), each row summing to 1.

    Example:
        >>> given = np.array([0.7, 0.2, 0.1])
        >>> within_bounds(given, np.zeros(3), np.array([0.4, 1.0, 1.0])).round(6).tolist()
        [0.4, 0.4, 0.2]
    """
    outside = ((probabilities < low) | (probabilities > high)).any(axis=-1, keepdims=True)
    if not outside.any():
        return probabilities
    positive = np.where(high > 0, np.maximum(probabilities, 1e-12), 0.0)
    small = np.full(outside.shape, -45.0)  # natural logarithms of c
    large = np.full(outside.shape, 45.0)
    for _ in range(HALVINGS):
        middle = (small + large) / 2
        too_much = np.clip(positive * np.exp(middle), low, high).sum(axis=-1, keepdims=True) > 1.0
        small, large = np.where(too_much, small, middle), np.where(too_much, middle, large)
    scaled = np.clip(positive * np.exp(small), low, high)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return np.asarray(np.where(outside, scaled, probabilities), dtype=np.float64)
