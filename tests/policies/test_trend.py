"""The trend of a reward: against a weighted least-squares line, and where little is known."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.policies.trend import Trend, steepness

NAN = np.nan


def trend_of(steps, values):
    trend = Trend.start(np.shape(values)[1])
    for step, row in zip(steps, values, strict=True):
        trend = trend.seen(step, np.asarray(row, dtype=float))
    return trend


def test_losses_on_a_line_over_the_logarithm_fall_by_its_slope():
    steps = [10, 20, 30, 40]
    values = [[3 - 0.5 * math.log(s), 1 + 0.2 * math.log(s), 2.0] for s in steps]
    np.testing.assert_allclose(trend_of(steps, values).fall, [0.5, -0.2, 0.0], atol=1e-12)


@given(
    st.lists(st.integers(1, 10**6), min_size=3, max_size=9, unique=True).map(sorted),
    st.integers(0, 2**32 - 1),
)
def test_the_trend_is_the_least_squares_line_with_weights_of_time_squared(steps, seed):
    values = np.random.default_rng(seed).uniform(0.1, 5.0, (len(steps), 3))
    x, last = np.log(steps), steps[-1]
    weights = np.array([step / last for step in steps])  # polyfit squares them
    expected = -np.polyfit(x, values, 1, w=weights)[0]
    scale = 1 + np.abs(expected)
    assert (np.abs(trend_of(steps, values).fall - expected) / scale < 1e-4).all()


def test_it_takes_three_measurements_after_the_start():
    trend = Trend.start(2).seen(0, np.array([9.0, 9.0]))
    for step, known in ((10, 0), (20, 0), (30, 1)):
        trend = trend.seen(step, np.array([1.0 / step, NAN if step == 20 else 1.0 / step]))
        assert np.isfinite(trend.fall).sum() == known
    assert np.isnan(trend.fall[1])  # it was not seen at step 20
    assert np.isfinite(trend.seen(40, np.array([NAN, 0.1])).fall).all()


def test_what_is_long_past_hardly_counts():
    early = [[9.0]], [[1.0]]
    falls = [
        trend_of(
            [1, 100, 110, 120, 130],
            [*first, *[[2 - 0.1 * math.log(s)] for s in (100, 110, 120, 130)]],
        ).fall[0]
        for first in early
    ]
    assert falls[0] == pytest.approx(falls[1], abs=0.2) and falls[0] != falls[1]


def test_a_trend_survives_json():
    trend = trend_of([5, 10, 15], [[3.0, NAN], [2.0, 1.0], [1.5, 0.5]])
    again = Trend.from_json(json.loads(json.dumps(trend.to_json())))
    following = np.array([1.2, 0.4])
    np.testing.assert_array_equal(again.seen(20, following).fall, trend.seen(20, following).fall)


def test_steepness_is_relative_and_bounded():
    fall = np.array([0.1, 0.2, 2.0, -0.1, NAN])
    assert steepness(fall, 4.0).tolist() == [0.5, 1.0, 4.0, 0.25, 1.0]
    assert steepness(np.array([-0.1, 0.0, NAN]), 4.0).tolist() == [1.0, 1.0, 1.0]
    assert steepness(1e-300 * fall, 4.0) == pytest.approx(steepness(fall, 4.0))
