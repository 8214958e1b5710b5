"""Floors and caps: inside, summing to 1, proportions kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.policies.bounds import within_bounds

SHARES = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6).filter(lambda x: sum(x) > 0.01)


def normal(values):
    return np.array(values) / np.sum(values)


def test_rows_inside_come_back_as_they_are_to_the_bit():
    given_rows = np.array([[0.1, 0.2, 0.7], [0.05, 0.05, 0.9]])
    high = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.6]])
    bounded = within_bounds(given_rows, np.zeros((2, 3)), high)
    assert (bounded[0] == given_rows[0]).all()
    assert bounded[1] == pytest.approx([0.2, 0.2, 0.6], abs=1e-9)


@given(wanted=SHARES, data=st.data())
def test_bounds_hold_and_free_arms_keep_their_proportions(wanted, data):
    shares = normal(wanted)
    size = len(shares)
    prior = normal(data.draw(st.lists(st.floats(0.05, 1.0), min_size=size, max_size=size)))
    low, high = 0.3 * prior, np.minimum(2.0 * prior, 1.0)
    bounded = within_bounds(shares, low, high)
    assert bounded.sum() == pytest.approx(1.0, abs=1e-12)
    assert (bounded >= low - 1e-9).all()
    assert (bounded <= high + 1e-9).all()
    free = (bounded > low + 1e-7) & (bounded < high - 1e-7) & (shares > 1e-6)
    ratios = bounded[free] / shares[free]
    assert ratios == pytest.approx(np.full(free.sum(), ratios[0] if free.any() else 0.0), rel=1e-5)


def test_arms_that_cannot_be_drawn_stay_at_zero():
    bounded = within_bounds(
        np.array([0.9, 0.1, 0.0]), np.array([0.2, 0.2, 0.0]), np.array([0.7, 0.7, 0.0])
    )
    assert bounded == pytest.approx([0.7, 0.3, 0.0], abs=1e-9)
