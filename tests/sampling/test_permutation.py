"""Keyed shuffles: bijections, even, independent of each other, equal to the slow way."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hbo.sampling.permutation import derive_keys, permute
from tests.sampling.oracle import derived, permuted

KEYS = st.integers(0, 2**64 - 1)


def excess_deviations(counts: np.ndarray, expected: float) -> float:
    """Chi-square of counts against an even expectation, in standard deviations over its mean."""
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@given(st.integers(1, 5000), KEYS)
@example(1, 0)
@example(16, 2**64 - 1)
def test_every_item_is_reached_once(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(st.lists(st.tuples(st.integers(1, 10**12), st.floats(0, 0.999), KEYS), min_size=1))
def test_each_element_may_have_its_own_size_and_key(items: list[tuple[int, float, int]]) -> None:
    sizes = [size for size, _, _ in items]
    places = [int(size * part) for size, part, _ in items]
    keys = [key for _, _, key in items]
    result = permute(places, sizes, np.array(keys, dtype=np.uint64))
    expected = [permuted(*item) for item in zip(places, sizes, keys, strict=True)]
    assert result.tolist() == expected


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_order_of_a_small_set_is_equally_likely(size: int) -> None:
    trials = 40_000
    keys = derive_keys(np.full(trials, 1, dtype=np.uint64), np.arange(trials))
    orders = permute(np.tile(np.arange(size), trials), size, np.repeat(keys, size))
    codes = (orders.reshape(trials, size) * size ** np.arange(size)).sum(axis=1)
    seen, counts = np.unique(codes, return_counts=True)
    assert len(seen) == math.factorial(size)
    assert abs(excess_deviations(counts, trials / len(seen))) < 4


@pytest.mark.parametrize("size", [9, 16, 30, 257])
def test_any_two_places_go_to_any_two_items_equally_often(size: int) -> None:
    trials = 40_000
    keys = derive_keys(np.full(trials, 2, dtype=np.uint64), np.arange(trials))
    for first, second in itertools.islice(
        itertools.combinations((0, 1, size // 2, size - 1), 2), 6
    ):
        pairs = permute(np.full(trials, first), size, keys) * size
        pairs += permute(np.full(trials, second), size, keys)
        bins = np.bincount(pairs, minlength=size * size)
        assert (bins[:: size + 1] == 0).all()  # two places never meet
        apart = np.delete(bins, np.arange(0, size * size, size + 1))
        assert abs(excess_deviations(apart, trials / apart.size)) < 4


def test_neighbouring_keys_give_unrelated_orders() -> None:
    size = 1000
    orders = [permute(np.arange(size), size, key) for key in range(60)]
    # Two unrelated orders agree in one place on average (Poisson).
    matches = [(a == b).sum() for a, b in itertools.combinations(orders, 2)]
    assert 0.9 < np.mean(matches) < 1.1
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in itertools.combinations(orders[:20], 2)]
    assert np.max(np.abs(correlations)) < 5 / math.sqrt(size)


def test_an_order_does_not_follow_the_places() -> None:
    steps = np.diff(permute(np.arange(100_000), 100_000, 9))
    assert np.mean(np.abs(steps)) == pytest.approx(100_000 / 3, rel=0.01)


def test_memory_does_not_depend_on_the_size() -> None:
    tracemalloc.start()
    permute(np.arange(1000), 10**12, 1)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@given(KEYS, st.integers(0, 2**40))
def test_keys_are_derived_as_the_slow_way_does(parent: int, number: int) -> None:
    fast = derive_keys(np.array([parent], dtype=np.uint64), np.array([number]))
    assert fast.tolist() == [derived(parent, number)]


def test_a_place_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        permute([0, 5], 5, 1)
