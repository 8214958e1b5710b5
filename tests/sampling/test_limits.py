"""Floors, caps and passes: what the projection promises, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hbo.errors import ConfigError, StateError
from hbo.sampling.limits import Limits, project_shares

NAMES = ("a", "b", "c")
PARTS = st.floats(0.01, 1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Limits]:
    """Joint probabilities (K, 2) and limits that can be satisfied."""
    k = draw(st.integers(1, 6))
    cells = draw(st.lists(st.lists(PARTS, min_size=2, max_size=2), min_size=k, max_size=k))
    law = np.array(cells) ** draw(st.sampled_from([1, 3]))
    law[draw(st.integers(0, k - 1)), 1] = 0
    low = np.array(draw(st.lists(PARTS, min_size=k, max_size=k)))
    low = low / low.sum() * draw(st.sampled_from([0.0, 0.4, 0.95, 1.0]))
    room = np.array(draw(st.lists(st.floats(0, 1), min_size=k, max_size=k)))
    high = np.minimum(low + room * draw(st.sampled_from([0.3, 1.0])) + 1e-6, 1)
    assume(high.sum() >= 1)
    return law / law.sum(), Limits(low, high, np.full(k, np.inf))


@given(cases())
def test_shares_keep_the_limits_and_sum_to_one(case: tuple[np.ndarray, Limits]) -> None:
    law, limits = case
    shares = limits.apply(law).sum(axis=1)
    assert shares.sum() == pytest.approx(1, abs=1e-8)
    assert (shares >= limits.min_share - 1e-8).all()
    assert (shares <= limits.max_share + 1e-8).all()


@given(cases())
def test_applying_it_twice_changes_nothing(case: tuple[np.ndarray, Limits]) -> None:
    law, limits = case
    once = limits.apply(law)
    assert np.array_equal(limits.apply(once), once)


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_subsets_does_not_matter(
    case: tuple[np.ndarray, Limits], random: object
) -> None:
    law, limits = case
    order = np.arange(len(law))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = Limits(limits.min_share[order], limits.max_share[order], limits.max_passes[order])
    assert shuffled.apply(law[order]) == pytest.approx(limits.apply(law)[order], abs=1e-9)


@given(cases())
def test_ratios_stay_between_untouched_subsets_and_inside_subsets(
    case: tuple[np.ndarray, Limits],
) -> None:
    law, limits = case
    result = limits.apply(law)
    shares, before = result.sum(axis=1), law.sum(axis=1)
    free = (shares > limits.min_share + 1e-6) & (shares < limits.max_share - 1e-6)
    factors = shares[free] / before[free]
    assert factors == pytest.approx(np.full(len(factors), factors.mean() if len(factors) else 1))
    assert result / shares[:, None] == pytest.approx(law / before[:, None])
    assert (result[law == 0] == 0).all()


@given(cases())
def test_no_other_factor_satisfies_the_limits(case: tuple[np.ndarray, Limits]) -> None:
    """The closed form against bisection on the factor."""
    law, limits = case
    shares = law.sum(axis=1)
    small, large = 0.0, 1e9
    for _ in range(200):
        middle = (small + large) / 2
        total = np.clip(middle * shares, limits.min_share, limits.max_share).sum()
        small, large = (middle, large) if total < 1 else (small, middle)
    expected = np.clip(large * shares, limits.min_share, limits.max_share)
    result = project_shares(shares, limits.min_share, limits.max_share)
    assert result == pytest.approx(expected, abs=1e-6)


def test_a_worked_case() -> None:
    limits = Limits([0, 0.2, 0.1], [0.5, 1, 1], np.full(3, np.inf))
    law = np.array([[0.8], [0.16], [0.04]])
    # The cap takes .3 from the first and the third stands at its floor of .1: .4 for the second.
    assert limits.apply(law).ravel() == pytest.approx([0.5, 0.4, 0.1])


def test_probabilities_inside_the_limits_are_returned_as_they_are() -> None:
    law = np.array([[0.3, 0.3], [0.4, 0.0]])
    assert Limits.none(2).apply(law) is law


def test_what_capped_subsets_cannot_hold_goes_to_those_without_a_share() -> None:
    limits = Limits(np.zeros(3), [0.4, 0.5, 0.5], np.full(3, np.inf))
    law = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    sizes = np.array([[1, 1], [3, 1], [1, 0]])
    result = limits.apply(law, sizes)
    assert result == pytest.approx(np.array([[0.4, 0], [0.225, 0.075], [0.3, 0]]))
    with pytest.raises(StateError, match="subset number 1 has probability 0"):
        limits.apply(law)


def test_a_floor_lifts_a_subset_without_a_share() -> None:
    limits = Limits([0, 0.1], [1, 1], [np.inf, np.inf])
    result = limits.apply(np.array([[0.6, 0.4], [0, 0]]), np.array([[1, 1], [2, 0]]))
    assert result == pytest.approx(np.array([[0.54, 0.36], [0.1, 0]]))


def test_extreme_shares_are_projected() -> None:
    shares = np.array([1.0 - 1e-9, 1e-9, 1e-310])
    result = project_shares(shares, np.zeros(3), np.array([0.5, 0.4, 0.4]))
    assert result == pytest.approx([0.5, 0.4, 0.1])


def test_max_draws_counts_passes_of_rows() -> None:
    limits = Limits(np.zeros(5), np.ones(5), [4, 0.29, math.inf, 1 / 3, 1e30])
    assert limits.max_draws([10, 100, 7, 3, 10]).tolist() == [40, 29, -1, 1, 2**62]


@pytest.mark.parametrize(
    ("low", "high", "passes", "message"),
    [
        ([0.5, 0.4, 0.2], [1, 1, 1], [1, 1, 1], r"min_share of all subsets sum to 1\.1, above 1"),
        ([0, 0, 0], [0.5, 0.2, 0.2], [1, 1, 1], r"max_share of all subsets sum to 0\.9, below 1"),
        (
            [0, 0.6, 0],
            [1, 0.5, 1],
            [1, 1, 1],
            r"datasets\.b\.min_share 0\.6 is above its max_share",
        ),
        ([0, -0.1, 0], [1, 1, 1], [1, 1, 1], r"datasets\.b\.min_share must be from 0 to 1"),
        ([0, 1.1, 0], [1, 1, 1], [1, 1, 1], r"datasets\.b\.min_share must be from 0 to 1"),
        ([0, math.nan, 0], [1, 1, 1], [1, 1, 1], r"datasets\.b\.min_share must be from 0 to 1"),
        ([0, 0, 0], [1, 1, 0], [1, 1, 1], r"datasets\.c\.max_share must be above 0 and at most 1"),
        ([0, 0, 0], [1, 1, 2], [1, 1, 1], r"datasets\.c\.max_share must be above 0 and at most 1"),
        ([0, 0, 0], [1, 1, 1], [0, 1, 1], r"datasets\.a\.max_passes must be above 0"),
        ([0, 0, 0], [1, 1, 1], [math.nan, 1, 1], r"datasets\.a\.max_passes must be above 0"),
    ],
)
def test_impossible_limits_are_named(
    low: list[float], high: list[float], passes: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Limits(low, high, passes).check(NAMES)


def test_possible_limits_pass() -> None:
    Limits.none(3).check(NAMES)
    Limits([0.1] * 3, [1 / 3] * 3, [4] * 3).check(NAMES)
    tenth = np.full(10, 0.1)  # sums to 0.9999999999999999
    Limits(tenth, tenth, np.ones(10)).check([str(k) for k in range(10)])


def test_limits_that_contradict_each_other_are_not_applied() -> None:
    with pytest.raises(ConfigError, match="no shares satisfy"):
        Limits([0.7, 0.7], [1, 1], [1, 1]).apply(np.array([[0.5], [0.5]]))


def test_fields_must_have_one_number_per_subset() -> None:
    with pytest.raises(ConfigError, match="one number per subset"):
        Limits([0, 0], [1, 1, 1], [1, 1])
