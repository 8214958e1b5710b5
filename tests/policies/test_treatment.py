"""What happens to rewards between measuring and paying."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.policies.treatment import clip_to_median, shrink, smooth, smooth_errors, usable

NAN = np.nan


def test_unusable_values_become_unknown_or_bounded_and_are_noted():
    values = np.array([1.0, NAN, np.inf, -2.0, 1e40, -np.inf, 5.0])
    allowed = np.array([True] * 6 + [False])
    cleaned, notes = usable(values, allowed, "global")
    assert cleaned == pytest.approx([1.0, NAN, NAN, 0.0, 1e30, NAN, NAN], nan_ok=True)
    assert notes == [
        ["infinite-reward", "2 global rewards: infinite, treated as unknown"],
        ["negative-reward", "1 global reward: negative, paid as 0"],
        ["huge-reward", "1 global reward: above 1e+30, cut to it"],
    ]


def test_arms_that_do_not_exist_are_never_noted():
    assert usable(np.array([-1.0, np.inf]), np.array([False, False]), "local")[1] == []


@given(
    st.lists(st.one_of(st.just(NAN), st.floats(0.01, 1e6)), min_size=1, max_size=7).map(np.array),
    st.floats(1.0, 10.0),
)
def test_clipping_uses_the_median_of_the_known(values, factor):
    clipped = clip_to_median(values, factor)
    known = np.isfinite(values)
    assert (np.isnan(clipped) == ~known).all()
    if known.any():
        median = np.median(values[known])
        expected = np.clip(values[known], median / factor, median * factor)
        assert clipped[known] == pytest.approx(expected)


def test_no_clipping_returns_the_values():
    values = np.array([1.0, 1e9])
    assert clip_to_median(values, None) is values


def test_smoothing_keeps_whichever_is_known():
    new, old = np.array([4.0, NAN, 3.0, NAN]), np.array([2.0, 5.0, NAN, NAN])
    assert smooth(new, old, 0.75) == pytest.approx([3.5, 5.0, 3.0, NAN], nan_ok=True)
    errors = smooth_errors(new, old, 0.75)
    assert errors == pytest.approx([np.hypot(3.0, 0.5), 5.0, 3.0, NAN], nan_ok=True)


def test_differences_that_noise_explains_vanish():
    values, errors = np.array([0.9, 1.0, 1.1]), np.full(3, 0.5)
    assert shrink(values, errors, 1.0) == pytest.approx(np.ones(3))


def test_differences_far_above_the_noise_stay():
    values = np.array([1.0, 2.0, 6.0])
    assert shrink(values, np.full(3, 0.01), 1.0) == pytest.approx(values, rel=1e-3)


def test_a_worked_case():
    # u = (0.5, 1.5), noise 0.1^2 and 0.3^2: sum (u - 1)^2 = 0.5, minus (0.01 + 0.09) / 2, over 1.
    between = 0.5 - 0.05
    expected = [1 - 0.5 * between / (between + 0.01), 1 + 0.5 * between / (between + 0.09)]
    shrunk = shrink(np.array([1.0, 3.0]), np.array([0.2, 0.6]), 1.0)
    assert shrunk == pytest.approx(2 * np.array(expected))
    half = shrink(np.array([1.0, 3.0]), np.array([0.2, 0.6]), 0.5)
    assert half == pytest.approx((shrunk + np.array([1.0, 3.0])) / 2)


def test_scale_of_the_rewards_does_not_matter_and_unknown_stays_unknown():
    values, errors = np.array([1.0, NAN, 3.0]), np.array([0.2, NAN, NAN])
    one = shrink(values, errors, 1.0)
    assert np.isnan(one[1])
    assert shrink(1e6 * values, 1e6 * errors, 1.0) == pytest.approx(1e6 * one, nan_ok=True)
    assert one[2] < 3.0  # the unknown error counts as the median of the known


def test_without_any_error_nothing_is_shrunk():
    values = np.array([[1.0, 2.0], [NAN, NAN]])
    assert shrink(values, np.full((2, 2), NAN), 1.0) == pytest.approx(values, nan_ok=True)


def test_shrinking_brings_noisy_rewards_nearer_to_the_truth():
    generator = np.random.default_rng(5)
    truth = generator.uniform(0.8, 1.2, size=(40, 4))
    errors = generator.uniform(0.05, 0.6, size=(40, 4))
    seen = np.maximum(truth + errors * generator.normal(size=(40, 4)), 0.0)
    assert ((shrink(seen, errors, 1.0) - truth) ** 2).mean() < ((seen - truth) ** 2).mean() / 2
