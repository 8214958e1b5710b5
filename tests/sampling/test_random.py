"""Counter-based random numbers: random access, range, and values that never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.errors import ConfigError
from hbo.sampling.random import check_seed, raw_words, uniforms

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.integers(0, 10**12), st.integers(0, 50), st.integers(0, 50))
def test_any_place_is_reached_without_the_ones_before(
    seed: int, start: int, skip: int, count: int
) -> None:
    whole = uniforms(seed, start, skip + count)
    assert np.array_equal(whole[skip:], uniforms(seed, start + skip, count))


def test_numbers_are_those_of_a_plain_philox_run() -> None:
    assert np.array_equal(raw_words(5, 0, 1001), np.random.Philox(key=5).random_raw(1001))


def test_numbers_are_uniform_and_below_one() -> None:
    numbers = uniforms(3, 0, 200_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    # chi-square with 99 degrees of freedom: mean 99, standard deviation 14
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 4 * 14
    assert (numbers * 2**53 % 1 == 0).all()


def test_numbers_are_the_same_on_every_machine_and_version() -> None:
    assert raw_words(42, 10**9, 3).tolist() == [
        4561836249320871610,
        5845601142361107298,
        10728915680272645761,
    ]


def test_seeds_give_different_numbers() -> None:
    assert not np.isin(uniforms(1, 0, 100), uniforms(2, 0, 100)).any()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, True, "7", None])
def test_a_bad_seed_is_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match=r"seed must be an integer from 0 to 2\^64 - 1"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [0, 2**64 - 1, np.int64(3)])
def test_a_good_seed_comes_back_plain(seed: int) -> None:
    assert type(check_seed(seed)) is int
    assert check_seed(seed) == seed
