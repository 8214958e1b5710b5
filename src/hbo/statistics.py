r"""Intervals and tests for runs that differ in policy and seed, measured on the same examples.

Let :math:`\ell_{psi}` be the loss of held-out example :math:`i` under the model of policy
:math:`p` and seed :math:`s`. Every run is measured on the same examples, so seeds and examples
cross. What is estimated is

.. math:: L_{psk} = \frac{\sum_i t_i \ell_{psi}}{\sum_i t_i}, \qquad
          M_{ps} = \frac{1}{K} \sum_k L_{psk}, \qquad \bar M_p = \frac{1}{S} \sum_s M_{ps},

over the examples of subset :math:`k` with :math:`t_i` tokens each; accuracy is the same with
:math:`t_i = 1`.

**Interval.** Seeds and examples are drawn again, each by itself and the same for all policies: the
bootstrap of crossed factors (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1,
2007). Few units make a bootstrap interval too narrow (Hesterberg, "What teachers should know about
the bootstrap", The American Statistician 69, 2015), for which there are two remedies. Of ``n``
examples ``n - 1`` are drawn, which makes the variance unbiased (Rao and Wu, "Resampling inference
with complex survey data", JASA 83, 1988). Of :math:`S` seeds :math:`S` are drawn, and what a seed's
weight then differs from :math:`1/S` is stretched by

.. math:: e_S = \sqrt{\frac{S}{S-1}} \; \frac{t_{0.975,\,S-1}}{z_{0.975}},

so that seeds alone give about Student's interval: 1.2 at ten seeds, 2.7 at three. One seed says
nothing about seeds, and the interval is of examples only.

**Test.** Under the hypothesis that a policy is no different from the reference, the difference of
each seed could as well have had the other sign; the exact p-value counts the sign patterns whose
mean is at least as far from zero. It is about seeds, on these held-out examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbo.errors import DataError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

REPLICATES = 10_000
LEVEL, SIGNIFICANT = 0.95, 0.05
EXACT_SEEDS, RANDOM_PATTERNS = 20, 100_000
_AT_ONCE, _DRAWS_AT_ONCE = 1000, 2**23
_STUDENT = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058)
"""The 0.975 quantile of Student's t at 1 to 5 degrees of freedom."""


@dataclass(frozen=True)
class Measure:
    """One number for each held-out example of each run.

    Args:
        values: For each of K subsets (P, S, n_k): policies, seeds, examples; None where the subset
            cannot be measured so (answers that nobody can grade). Rows of runs that are not there
            hold anything.
        weights: For each subset (n_k,): tokens for a loss in nats per token, ones for accuracy.
        present: (P, S), whether there is such a run.
        worst: ``max`` where high is bad, ``min`` where low is.
    """

    values: Sequence[FloatArray | None]
    weights: Sequence[FloatArray]
    present: BoolArray
    worst: Callable[..., Any] = np.max

    def __post_init__(self) -> None:
        for values, weights in zip(self.values, self.weights, strict=True):
            if values is not None and values.shape != (*self.present.shape, len(weights)):
                raise DataError(
                    f"runs were measured on other examples: values of shape {values.shape}, "
                    f"{self.present.shape} runs of {len(weights)} examples are needed"
                )

    @property
    def known(self) -> list[int]:
        """The subsets that are measured."""
        return [k for k, values in enumerate(self.values) if values is not None]

    def scores(self) -> FloatArray:
        """Weighted means (P, S, K) over examples; NaN where there is no run or no measure."""
        scores = np.full((*self.present.shape, len(self.values)), np.nan)
        for k, (values, weights) in enumerate(zip(self.values, self.weights, strict=True)):
            if values is not None:
                scores[..., k] = _filled(values, self.present) @ weights / weights.sum()
        return np.where(self.present[..., None], scores, np.nan)


@dataclass(frozen=True)
class Replicates:
    """The same numbers under B draws of the examples, for each seed: 0 where there is no run.

    Args:
        subsets: (B, P, K) means over drawn seeds as well; NaN where there is no measure.
        macro: (B, P, S) plain means over the measured subsets.
        worst: (B, P, S) the worst measured subset, found again in each replicate.
        seed: What the draws follow from.
    """

    subsets: FloatArray
    macro: FloatArray
    worst: FloatArray
    seed: int

    def over_seeds(self, values: FloatArray, present: BoolArray) -> FloatArray:
        """Means (B,) over drawn seeds of ``values`` (B, S), from those ``present`` (S,)."""
        weights = seed_weights(present, len(values), self.seed)
        return np.asarray((values * weights).sum(axis=1))


def bootstrap(measure: Measure, replicates: int = REPLICATES, seed: int = 0) -> Replicates:
    """Draw seeds and examples again; two measures of one comparison get the same draws.

    Args:
        measure: P policies, S seeds, K subsets.
        replicates: B.
        seed: What the draws follow from, and nothing else does.

    Returns:
        The numbers under each draw.
    """
    policies, seeds = measure.present.shape
    subsets = np.full((replicates, policies, len(measure.values)), np.nan)
    macro = np.zeros((replicates, policies, seeds))
    worst = np.zeros((replicates, policies, seeds))
    known = measure.known
    generators = {k: np.random.default_rng([seed, 1, k]) for k in known}
    over_seeds = np.stack([seed_weights(row, replicates, seed) for row in measure.present], axis=1)
    columns = {k: _columns(measure, k) for k in known}
    most = max((len(measure.weights[k]) for k in known), default=1)
    at_once = max(1, min(_AT_ONCE, _DRAWS_AT_ONCE // most))
    for start in range(0, replicates, at_once):
        rows = slice(start, min(start + at_once, replicates))
        drawn = np.empty((len(known), rows.stop - start, policies, seeds))
        for place, k in enumerate(known):
            counts = _counts(len(measure.weights[k]), drawn.shape[1], generators[k])
            sums = counts @ columns[k]
            drawn[place] = (sums[:, :-1] / sums[:, -1:]).reshape(-1, policies, seeds)
        subsets[rows][..., known] = np.einsum("kbps,bps->bpk", drawn, over_seeds[rows])
        macro[rows] = drawn.mean(axis=0)
        worst[rows] = measure.worst(drawn, axis=0)
    return Replicates(subsets, macro, worst, seed)


def _filled(values: FloatArray, present: BoolArray) -> FloatArray:
    return np.where(present[..., None], values, 0.0)


def _columns(measure: Measure, k: int) -> FloatArray:
    """(n_k, P S + 1): weighted values of each run, and in the last column the weights."""
    values, weights = measure.values[k], measure.weights[k]
    assert values is not None
    flat = (_filled(values, measure.present) * weights).reshape(-1, len(weights))
    return np.concatenate([flat, weights[None]]).T


def _counts(units: int, replicates: int, generator: np.random.Generator) -> FloatArray:
    """How often each unit is among ``units - 1`` drawn with replacement, (B, units)."""
    drawn = generator.integers(0, units, (replicates, max(units - 1, 1)))
    return _tally(drawn, units)


def _tally(drawn: NDArray[np.int64], units: int) -> FloatArray:
    drawn += units * np.arange(len(drawn))[:, None]
    counts = np.bincount(drawn.ravel(), minlength=len(drawn) * units)
    return counts.reshape(len(drawn), units).astype(np.float64)


def seed_weights(present: BoolArray, replicates: int, seed: int) -> FloatArray:
    """What each seed counts for in each replicate.

    Args:
        present: (S,), which seeds have a run; the same ones give the same draws.
        replicates: B.
        seed: What the draws follow from.

    Returns:
        (B, S), rows sum to 1, 0 where there is no run; stretched as the module says, so a weight
        may be negative.

    Example:
        >>> seed_weights(np.array([True, False]), 2, seed=0)
        array([[1., 0.],
               [1., 0.]])
    """
    places = np.flatnonzero(present)
    weights = np.zeros((replicates, len(present)))
    if len(places) < 2:
        weights[:, places] = 1.0
        return weights
    generator = np.random.default_rng([seed, 0, *present.astype(int)])
    drawn = generator.integers(0, len(places), (replicates, len(places)))
    even = 1.0 / len(places)
    weights[:, places] = even + stretch(len(places)) * (_tally(drawn, len(places)) * even - even)
    return weights


def stretch(seeds: int) -> float:
    """What the bootstrap of so few seeds falls short of Student's interval by; at least 2 seeds.

    Example:
        >>> [round(stretch(seeds), 2) for seeds in (2, 3, 10)]
        [9.17, 2.69, 1.22]
    """
    return math.sqrt(seeds / (seeds - 1)) * student(seeds - 1) / NormalDist().inv_cdf(0.975)


def student(freedom: int) -> float:
    """The 0.975 quantile of Student's t (Abramowitz and Stegun 26.7.5 from 6 degrees on).

    Example:
        >>> round(student(9), 3), round(student(1000), 3)
        (2.262, 1.962)
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def interval(replicates: FloatArray) -> tuple[float, float]:
    """The middle 95 % of replicates (B,)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


# --- tests ----------------------------------------------------------------------------------------


def sign_flip_p(differences: Sequence[float] | FloatArray, seed: int = 0) -> float:
    r"""Two-sided p-value of paired differences, by flipping their signs.

    .. math:: p = 2^{-S} \, \#\{\epsilon \in \{-1, 1\}^S :
              |\textstyle\sum_s \epsilon_s d_s| \ge |\sum_s d_s|\}

    exact up to 20 seeds; beyond, of 100,000 random patterns and the one seen (Phipson and Smyth,
    "Permutation p-values should never be zero", SAGMB 9, 2010).

    Args:
        differences: (S,) policy minus reference, one for each seed.
        seed: Of the random patterns.

    Example:
        >>> sign_flip_p([0.2, 0.1, 0.3])
        0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    # Sums of the same numbers in another order may differ in the last bits.
    reached = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= EXACT_SEEDS:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= reached).mean())
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, (RANDOM_PATTERNS, len(values)), dtype=np.int8) * 2 - 1
    return float(1 + (np.abs(signs @ values) >= reached).sum()) / (1 + RANDOM_PATTERNS)


def smallest_p(seeds: int, comparisons: int = 1) -> float:
    """The smallest p-value that so many seeds can give, after the correction for comparisons.

    Example:
        >>> smallest_p(3), smallest_p(10, comparisons=7)
        (0.25, 0.013671875)
    """
    return min(1.0, comparisons * 2.0 / 2.0**seeds)


def seeds_needed(comparisons: int) -> int:
    """The fewest seeds whose smallest corrected p-value is below 0.05.

    Example:
        >>> seeds_needed(1), seeds_needed(7)
        (6, 9)
    """
    return next(seeds for seeds in range(1, 1024) if smallest_p(seeds, comparisons) < SIGNIFICANT)


def holm(p_values: Sequence[float]) -> list[float]:
    r"""P-values corrected for how many there are (Holm, Scand. J. Statistics 6, 1979).

    The i-th smallest of m becomes :math:`\max_{j \le i} \min(1, (m - j + 1) \, p_{(j)})`: the
    chance of one false finding or more stays below the threshold.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
