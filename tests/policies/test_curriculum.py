"""The curriculum over difficulty groups."""

import dataclasses

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import Curriculum
from tests.policies.signal_cases import signals_of

SIZES = np.array([[10, 10, 20], [4, 4, 4], [5, 5, 0], [2, 0, 0]])
SHARES = np.array([40, 12, 10, 2]) / 64


def law_at(policy, step):
    state = policy.update(policy.init(SIZES), signals_of(SIZES, step))
    law = policy.probabilities(state)
    assert law.sum(axis=1) == pytest.approx(SHARES)
    return (law / law.sum(axis=1, keepdims=True)).round(6)


def opened(policy, step):
    return (law_at(policy, step) > 0).sum(axis=1).tolist()


def test_groups_open_from_easy_to_hard_and_stay_open():
    policy = Curriculum(length=100)
    assert opened(policy, 0) == [1, 1, 1, 1]
    assert opened(policy, 49) == [1, 1, 1, 1]
    assert opened(policy, 50) == [2, 2, 1, 1]
    assert opened(policy, 100) == [3, 3, 2, 1]
    assert opened(policy, 900) == [3, 3, 2, 1]
    assert law_at(policy, 50)[0].tolist() == [0.5, 0.5, 0.0]
    assert law_at(policy, 100)[0].tolist() == [0.25, 0.25, 0.5]  # by size


def test_hard_to_easy_begins_with_the_hardest_group_that_there_is():
    policy = Curriculum(length=100, order="hard-to-easy")
    assert law_at(policy, 0).tolist() == [[0, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert law_at(policy, 50)[0].tolist() == pytest.approx([0, 1 / 3, 2 / 3], abs=1e-6)


def test_one_group_at_a_time_gives_each_an_equal_part_and_then_all():
    policy = Curriculum(length=300, cumulative=False)
    first = {step: law_at(policy, step)[0].tolist() for step in (0, 99, 100, 200, 299, 300)}
    assert first == {
        0: [1, 0, 0],
        99: [1, 0, 0],
        100: [0, 1, 0],
        200: [0, 0, 1],
        299: [0, 0, 1],
        300: [0.25, 0.25, 0.5],
    }
    assert law_at(policy, 149)[2].tolist() == [1, 0, 0]
    assert law_at(policy, 150)[2].tolist() == [0, 1, 0]


def test_without_a_length_one_pass_over_the_examples_opens_everything():
    policy = Curriculum()
    for draws, expected in ((0, [1, 1, 1, 1]), (31, [1, 1, 1, 1]), (32, [2, 2, 1, 1])):
        done = np.zeros_like(SIZES)
        done[0, 0] = draws  # of 64
        signals = dataclasses.replace(signals_of(SIZES, 7), draws=done)
        law = policy.probabilities(policy.update(policy.init(SIZES), signals))
        assert (law > 0).sum(axis=1).tolist() == expected


def test_the_prior_over_subsets_is_kept():
    policy = Curriculum(prior_temperature=float("inf"))
    assert policy.probabilities(policy.init(SIZES)).sum(axis=1) == pytest.approx([0.25] * 4)
    given = np.array([0.1, 0.2, 0.3, 0.4])
    assert Curriculum().probabilities(Curriculum().init(SIZES, given)).sum(axis=1) == pytest.approx(
        given
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("order", "up", "order is 'up'; allowed: easy-to-hard, hard-to-easy"),
        ("length", 0, "length is 0"),
        ("cumulative", 1, "cumulative is 1"),
        ("prior_temperature", -1, "prior_temperature is -1"),
    ],
)
def test_bad_settings_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        Curriculum(**{field: value})
