"""From measured rewards to the rewards that an actor is paid: unknown, wild and noisy values.

All functions work on rows, the last axis being the arms of one actor: (K,) or (K, G).
"""

from __future__ import annotations

import numpy as np

from hbo.mixture import FloatArray
from hbo.policies.actor import BoolArray

LARGEST = 1e30
"""Rewards above are cut to this, far below where squares overflow."""

Note = list[str]
"""[code, text] of something worth a warning."""


def usable(values: FloatArray, allowed: BoolArray, actor: str) -> tuple[FloatArray, list[Note]]:
    """Rewards that arithmetic survives, and notes on those that were changed.

    NaN and infinity become NaN (unknown); negative values become 0, the least an arm can be paid
    where probabilities follow R / sum R; values above 1e30 are cut. Arms that cannot be drawn are
    unknown, silently.

    Args:
        values: (..., A) measured rewards.
        allowed: (..., A) arms that can be drawn.
        actor: ``global`` or ``local``, for the notes.
    """
    counts = {
        "infinite-reward": int((np.isinf(values) & allowed).sum()),
        "negative-reward": int((allowed & np.isfinite(values) & (values < 0)).sum()),
        "huge-reward": int((allowed & np.isfinite(values) & (values > LARGEST)).sum()),
    }
    said = {
        "infinite-reward": "infinite, treated as unknown",
        "negative-reward": "negative, paid as 0",
        "huge-reward": f"above {LARGEST:g}, cut to it",
    }
    cleaned = np.where(np.isfinite(values) & allowed, np.clip(values, 0.0, LARGEST), np.nan)
    notes = [
        [code, f"{count} {actor} reward{'s' if count > 1 else ''}: {said[code]}"]
        for code, count in counts.items()
        if count
    ]
    return cleaned, notes


def mean_of_known(values: FloatArray) -> FloatArray:
    """(..., 1) mean of the known values of each row; NaN where none is known."""
    known = np.isfinite(values)
    count = known.sum(axis=-1, keepdims=True)
    total = np.where(known, values, 0.0).sum(axis=-1, keepdims=True)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan), dtype=np.float64)


def clip_to_median(values: FloatArray, factor: float | None) -> FloatArray:
    """Cut each row to [median / factor, median x factor]; ``None`` leaves it as it is.

    A mean of ratios over a few examples (Eq. 8) is heavy-tailed: one example can carry a cell.
    """
    if factor is None:
        return values
    count = np.isfinite(values).sum(axis=-1, keepdims=True)
    ordered = np.sort(values, axis=-1)  # NaN comes last
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    median = (low + high) / 2
    return np.clip(values, median / factor, median * factor)


def smooth(new: FloatArray, old: FloatArray, alpha: float) -> FloatArray:
    """Return alpha x new + (1 - alpha) x old; whichever is known where the other is not."""
    both = alpha * new + (1.0 - alpha) * old
    return np.where(np.isnan(new), old, np.where(np.isnan(old), new, both))


def smooth_errors(new: FloatArray, old: FloatArray, alpha: float) -> FloatArray:
    """Standard error of ``smooth`` of independent values."""
    both = np.sqrt((alpha * new) ** 2 + ((1.0 - alpha) * old) ** 2)
    return np.where(np.isnan(new), old, np.where(np.isnan(old), new, both))


def shrink(values: FloatArray, errors: FloatArray, strength: float) -> FloatArray:
    """Pull each reward to the mean of its row, the more the noisier it is.

    Empirical Bayes. With u = value / mean of its row and e = error / mean of its row, the spread of
    true rewards is estimated from all rows together by the method of moments,
    tau^2 = max(0, (sum (u - 1)^2 - sum e^2 (1 - 1/n)) / sum (n - 1)), n being the known arms of a
    row; then u <- 1 + (u - 1) [1 - strength e^2 / (tau^2 + e^2)]. Differences that noise explains
    vanish, differences far above it stay. An unknown error counts as the median of the known ones
    and, where none is known, as 0: no shrinkage.

    Not in the paper (Morris, JASA 1983; DerSimonian and Laird, 1986).

    Args:
        values: (..., A) rewards >= 0, NaN where unknown.
        errors: (..., A) standard errors, NaN where unknown.
        strength: 0 (off) to 1 (full).
    """
    centre = mean_of_known(values)
    if strength == 0.0 or not (centre > 0).any():
        return values
    safe = np.where(centre > 0, centre, 1.0)
    relative, noise = values / safe, errors / safe
    known = np.isfinite(relative) & (centre > 0)
    measured = noise[known & np.isfinite(noise)]
    usual = float(np.median(measured)) if measured.size else 0.0
    noise = np.where(np.isfinite(noise), noise, usual) ** 2
    count = np.broadcast_to(known.sum(axis=-1, keepdims=True), known.shape)[known]
    away = (relative[known] - 1.0) ** 2 - noise[known] * (1.0 - 1.0 / np.maximum(count, 1))
    freedom = float((1.0 - 1.0 / np.maximum(count, 1)).sum())
    between = max(0.0, float(away.sum()) / freedom) if freedom > 0 else 0.0
    total = between + noise
    lost = np.where(total > 0, noise / np.where(total > 0, total, 1.0), 0.0)
    shrunk = safe * (1.0 + (relative - 1.0) * (1.0 - strength * lost))
    return np.where(known, shrunk, values)


def repeated(passes: FloatArray, scale: float) -> FloatArray:
    """What a draw is worth after so many passes: exp(-passes / scale), 1 for the least repeated.

    The r-th repetition of a text teaches about exp(-r / R) of what its first reading did: the form
    of arXiv 2305.16264, for pre-training.

    Args:
        passes: (K,) draws so far, per example of the subset; NaN for what is never drawn.
        scale: R, passes.
    """
    return np.asarray(np.exp((np.nanmin(passes) - passes) / scale), dtype=np.float64)
