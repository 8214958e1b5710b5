"""What policies over subsets have in common: a start at the prior, a tilt of it, and what is said.

Inside a subset every example is alike: p(group given subset) is the group's share of the subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields
from hbo.policies.base import PolicyState
from hbo.policies.cells import from_plain, joint, to_plain, two_level_prior
from hbo.policies.treatment import Note, mean_of_known

SMALLEST = 1e-12
"""A share that is multiplied from update to update counts as this at least, so none is lost."""


def check_start(prior_temperature: Any, update_interval: Any) -> None:
    """Check the two fields of every policy that leaves a prior; ``ConfigError`` where wrong."""
    fields.number("prior_temperature", prior_temperature, 0.0, above=True, finite=False)
    fields.whole_number("update_interval", update_interval, 1)


def start(sizes: IntArray, weights: FloatArray | None, temperature: float) -> PolicyState:
    """The state at the prior: ``prior`` and ``shares`` of subsets, ``groups``, ``last``.

    Args:
        sizes: (K, G) size of each cell.
        weights: (K,) shares that the user gave, in place of sizes.
        temperature: T of the prior over subsets: 1 proportional, infinity uniform.
    """
    subsets, groups = two_level_prior(sizes, weights, temperature)
    return {
        "prior": subsets.tolist(),
        "groups": groups.tolist(),
        "shares": subsets.tolist(),
        "last": {},
    }


def law(state: PolicyState) -> FloatArray:
    """(K, G) share of the subset x share of the group in it."""
    return joint(from_plain(state["shares"]), from_plain(state["groups"]))


def arms(state: PolicyState) -> FloatArray:
    """(K,) 1 for the subsets that have a prior, 0 for those that were given a share of 0."""
    return (from_plain(state["prior"]) > 0).astype(np.float64)


def tilted(base: FloatArray, scores: FloatArray, smoothing: float = 0.0) -> FloatArray:
    """(1 - c) b_i exp(s_i) / sum_j b_j exp(s_j) + c / n over the n subsets with b_i > 0.

    Computed in logarithms: scores of any size neither overflow nor leave 0 / 0.

    Args:
        base: (K,) b, at least 0, one of them positive.
        scores: (K,) s; the greatest finite.
        smoothing: c, the share that is spread evenly.

    Example:
        >>> tilted(np.array([0.5, 0.5, 0.0]), np.array([1e9, 1e9, 7.0])).tolist()
        [0.5, 0.5, 0.0]
    """
    real = base > 0
    logs = np.log(np.where(real, np.maximum(base, SMALLEST), 1.0)) + scores
    powers = np.exp(np.where(real, logs - logs[real].max(), -np.inf))
    shares = powers / powers.sum()
    return np.asarray((1.0 - smoothing) * shares + smoothing * real / real.sum(), dtype=np.float64)


def latest(now: FloatArray, known: Sequence[Any] | None) -> FloatArray:
    """(K,) what was measured now, else what is known from before, else NaN.

    Args:
        now: (K,) values; what is not finite was not measured.
        known: (K,) kept in the state, ``None`` where unknown; or nothing kept yet.
    """
    old = np.full(np.shape(now), np.nan) if known is None else from_plain(known)
    return np.where(np.isfinite(now), now, old)


def or_mean(values: FloatArray) -> FloatArray:
    """(K,) with the mean of the known for the unknown: it neither gains nor loses by it."""
    return np.where(np.isfinite(values), values, mean_of_known(values))


def explained(
    rewards: FloatArray,
    errors: FloatArray | None = None,
    notes: Sequence[Note] = (),
    *,
    what: str = "reward",
) -> dict[str, Any]:
    """What ``explain`` gives: rewards as measured, their errors, and a note on the unmeasured.

    Args:
        rewards: (K,) as measured; unknown where not finite.
        errors: (K,) standard errors, where there are any.
        notes: Further notes.
        what: The rewards' name in the note.
    """
    unknown = int((~np.isfinite(rewards)).sum())
    text = f"{unknown} of {len(rewards)} subsets: {what} not measured; what was known before stands"
    missing = [["unknown-reward", text]] if unknown else []
    errors = np.full(np.shape(rewards), np.nan) if errors is None else errors
    return {
        "global": {"rewards": to_plain(rewards), "errors": to_plain(errors)},
        "notes": missing + list(notes),
    }
