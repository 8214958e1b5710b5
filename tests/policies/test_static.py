"""Priors and given shares."""

import math

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import Schedule, Static, make_policy
from tests.policies.signal_cases import random_signals

SIZES = np.array([[8, 8], [3, 1], [2, 2]])


def shares(policy, sizes=SIZES, weights=None):
    return policy.probabilities(policy.init(sizes, weights))


def test_proportional_makes_every_example_alike():
    assert shares(make_policy("prop")) == pytest.approx(SIZES / SIZES.sum())


def test_uniform_makes_every_subset_alike_and_its_examples_too():
    assert shares(make_policy("uni")) == pytest.approx(SIZES / SIZES.sum(axis=1)[:, None] / 3)


def test_temperature_is_ten_unless_given():
    powers = np.array([16, 4, 4]) ** 0.1
    assert shares(make_policy("temp")).sum(axis=1) == pytest.approx(powers / powers.sum())
    assert shares(make_policy("temp", temperature=1)) == pytest.approx(shares(make_policy("prop")))
    cold = make_policy("temp", temperature=math.inf)
    assert shares(cold) == pytest.approx(shares(make_policy("uni")))


def test_given_weights_replace_the_sizes():
    weights = np.array([0.1, 0.3, 0.6])
    assert shares(make_policy("prop"), weights=weights).sum(axis=1) == pytest.approx(weights)
    assert shares(make_policy("uni"), weights=weights).sum(axis=1) == pytest.approx(np.ones(3) / 3)


def test_names_fix_their_temperature():
    with pytest.raises(ConfigError, match="policy prop: unknown policy field 'temperature'"):
        make_policy("prop", temperature=3)
    with pytest.raises(ConfigError, match="use policy: temp with temperature: T"):
        make_policy("temp", prior_temperature=5)


@pytest.mark.parametrize("value", [0, -1, "10", True, float("nan"), None])
def test_a_bad_temperature_is_refused(value):
    with pytest.raises(ConfigError, match=r"temperature is .*a number above 0, infinity too"):
        make_policy("temp", temperature=value)


def test_static_takes_its_own_weights_first():
    given = np.array([0.2, 0.2, 0.6])
    assert shares(Static(), weights=given).sum(axis=1) == pytest.approx(given)
    own = Static(weights=[2, 1, 1])
    assert shares(own, weights=given).sum(axis=1) == pytest.approx([0.5, 0.25, 0.25])


def test_static_without_weights_says_where_to_give_them():
    with pytest.raises(ConfigError, match=r"datasets.NAME.weight.*balance.weights"):
        Static().init(SIZES)
    with pytest.raises(ConfigError, match="2 entries for 3 subsets"):
        Static(weights=(1, 1)).init(SIZES)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], "1,2", 3, [1, "2"], [1, math.inf]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="weights"):
        Static(weights=weights)


# --- schedule ----------------------------------------------------------------------------------

POINTS = (
    {"step": 0, "weights": [1, 0, 0]},
    {"step": 60, "weights": [0, 1, 1]},
    {"step": 100, "weights": [0, 0, 1]},
)


def followed(policy, steps):
    state, seen = policy.init(SIZES), {}
    for step in steps:
        state = policy.update(state, random_signals(SIZES, 0, step=step))
        seen[step] = policy.probabilities(state).sum(axis=1).round(6).tolist()
    return seen


def test_a_schedule_holds_from_point_to_point_and_updates_on_each():
    policy = Schedule(points=POINTS)
    assert policy.interval == 20
    assert followed(policy, (20, 40, 60, 80, 100, 400)) == {
        20: [1, 0, 0],
        40: [1, 0, 0],
        60: [0, 0.5, 0.5],
        80: [0, 0.5, 0.5],
        100: [0, 0, 1],
        400: [0, 0, 1],
    }


def test_a_linear_schedule_interpolates():
    policy = Schedule(points=POINTS, interpolation="linear", update_interval=15)
    assert policy.interval == 15
    seen = followed(policy, (15, 30, 60, 80, 150))
    assert seen[15] == [0.75, 0.125, 0.125]
    assert seen[30] == [0.5, 0.25, 0.25]
    assert seen[60] == [0, 0.5, 0.5]
    assert seen[80] == [0, 0.25, 0.75]
    assert seen[150] == [0, 0, 1]


def test_cells_can_be_given_and_empty_ones_are_left_out():
    sizes = np.array([[2, 0], [1, 1]])
    policy = Schedule(points=[(0, [[1, 3], [1, 2]])])
    assert shares(policy, sizes) == pytest.approx(np.array([[0.25, 0], [0.25, 0.5]]))
    assert policy.interval == 200


def test_before_its_first_point_a_schedule_is_at_it():
    assert shares(Schedule(points=[(50, [1, 1, 2])])).sum(axis=1) == pytest.approx(
        [0.25, 0.25, 0.5]
    )


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("0: 1", "points is '0: 1'"),
        ([{"step": 0}], "a point is"),
        ([{"step": 0, "shares": [1, 1, 1]}], "a point is"),
        ([{"step": -1, "weights": [1, 1, 1]}], "step of a point is -1"),
        ([{"step": 0, "weights": [1, -1, 1]}], "an entry of a point is -1"),
        ([(5, [1, 1, 1]), (5, [1, 1, 1])], "steps rising from 0"),
    ],
)
def test_bad_points_are_refused(points, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(points=points)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ((), "policy schedule has no points"),
        ([(0, [1, 1])], "has 2 rows for 3 subsets"),
        ([(0, [[1, 1, 1]] * 3)], r"rows of \[3\] numbers; allowed: 2"),
        ([(0, [0, 0, 0])], "gives every cell that has examples 0"),
    ],
)
def test_points_that_do_not_fit_the_mixture_are_refused(points, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(points=points).init(SIZES)
