"""Difficulty groups: equal counts, nothing lost, ties, NaN, subsets smaller than the groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.difficulty.groups import assign_groups
from hbo.errors import ConfigError

SCORES = st.lists(
    st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0]), max_size=60
)


@given(SCORES, st.integers(1, 7))
def test_groups_are_the_sorted_examples_cut_evenly(scores: list[float], groups: int) -> None:
    ranked = sorted(range(len(scores)), key=lambda i: (np.isnan(scores[i]), scores[i], i))
    if any(np.isnan(scores)):  # a NaN in the key does not compare: order them by hand
        known = [i for i in range(len(scores)) if not np.isnan(scores[i])]
        unknown = [i for i in range(len(scores)) if np.isnan(scores[i])]
        ranked = sorted(known, key=lambda i: (scores[i], i)) + unknown
    expected = np.empty(len(scores), dtype=int)
    for group, part in enumerate(np.array_split(ranked, groups)):
        expected[part.astype(int)] = group
    assert assign_groups(np.array(scores), groups).tolist() == expected.tolist()


@given(SCORES, st.integers(1, 7))
def test_counts_differ_by_one_at_most_and_nothing_is_dropped(
    scores: list[float], groups: int
) -> None:
    counts = np.bincount(assign_groups(np.array(scores), groups), minlength=groups)
    assert counts.sum() == len(scores)
    assert counts.max() - counts.min() <= 1
    assert (np.diff(counts) <= 0).all()  # the extra ones are the easiest groups


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40), st.integers(1, 5))
def test_no_example_of_a_group_is_harder_than_one_of_the_next(
    scores: list[float], groups: int
) -> None:
    values = np.array(scores)
    assigned = assign_groups(values, groups)
    for group in range(groups - 1):
        easier, harder = values[assigned == group], values[assigned == group + 1]
        if len(easier) and len(harder):
            assert easier.max() <= harder.min()


def test_a_remainder_is_spread() -> None:
    # The case of the released code that loses two of thirty.
    counts = np.bincount(assign_groups(np.arange(30.0), 4))
    assert counts.tolist() == [8, 8, 7, 7]


def test_a_subset_smaller_than_the_groups_has_as_many_groups_as_examples() -> None:
    assert assign_groups(np.array([3.0, 1.0, 2.0]), 5).tolist() == [2, 0, 1]


def test_ties_keep_the_order_of_the_examples() -> None:
    assert assign_groups(np.ones(5), 2).tolist() == [0, 0, 0, 1, 1]


def test_what_could_not_be_measured_is_hardest_and_infinity_comes_before_it() -> None:
    scores = np.array([np.nan, np.inf, 2.0, -np.inf])
    assert assign_groups(scores, 4).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("scores", "groups", "message"),
    [(np.ones(3), 0, "at least 1, got 0"), (np.ones((2, 2)), 2, "one per example")],
)
def test_what_cannot_be_grouped_is_refused(scores: np.ndarray, groups: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        assign_groups(scores, groups)


@given(SCORES, st.integers(1, 7), st.floats(0.0, 0.99))
def test_what_is_dropped_is_the_easiest_and_the_rest_is_grouped_as_if_alone(
    scores: list[float], groups: int, share: float
) -> None:
    values = np.array(scores)
    found = assign_groups(values, groups, share)
    kept = found >= 0
    assert (~kept).sum() == int(share * len(scores))
    assert found[kept].tolist() == assign_groups(values[kept], groups).tolist()
    assert not (values[~kept][:, None] > values[kept]).any()
