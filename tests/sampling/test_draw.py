"""Laws over cells and turns inside them: the fast ways against the obvious ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hbo.sampling.draw import Law, Shelves, occurrence_ranks
from hbo.sampling.random import uniforms

CHANCES = hnp.arrays(
    np.float64, st.integers(1, 60), elements=st.sampled_from([0.0, 1e-300, 1e-12, 0.1, 0.3, 1.0])
).filter(lambda chances: bool(chances.any()))


@given(CHANCES, st.integers(0, 2**32))
def test_the_table_finds_what_the_search_finds(chances: np.ndarray, seed: int) -> None:
    law = Law(chances)
    edges = np.concatenate((law.cumulative, np.nextafter(law.cumulative, 0))) / law.cumulative[-1]
    numbers = np.concatenate((uniforms(seed, 0, 5000), edges[edges < 1], [0.0, 1 - 2**-53]))
    cells = law.cells(numbers)
    assert np.array_equal(cells, law.search(numbers))
    assert (chances[cells] > 0).all()


def test_the_table_finds_what_the_search_finds_among_thousands_of_cells() -> None:
    law = Law(np.random.default_rng(0).dirichlet(np.full(4000, 0.3)))
    numbers = uniforms(1, 0, 50_000)
    assert (law.guide < 0).any()
    assert np.array_equal(law.cells(numbers), law.search(numbers))


def test_the_smallest_probability_there_is_can_be_all_there_is() -> None:
    assert Law(np.array([0.0, 5e-324, 0.0])).cells(np.array([0.0, 0.75])).tolist() == [1, 1]


def test_cells_come_as_often_as_the_law_says() -> None:
    chances = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    counts = np.bincount(Law(chances).cells(uniforms(4, 0, 100_000)), minlength=5)
    deviations = (counts - 1e5 * chances) / np.sqrt(1e5 * chances * (1 - chances) + 1e-9)
    assert np.abs(deviations).max() < 4


@given(hnp.arrays(np.int64, st.integers(0, 80), elements=st.integers(0, 7)))
def test_occurrence_ranks_count_the_same_cell_before(cells: np.ndarray) -> None:
    ranks = occurrence_ranks(cells, np.bincount(cells, minlength=8))
    assert ranks.tolist() == [int((cells[:i] == cells[i]).sum()) for i in range(cells.size)]


def test_occurrence_ranks_with_more_cells_than_16_bits() -> None:
    cells = np.array([70_000, 70_000, 4464])  # equal modulo 2^16
    assert occurrence_ranks(cells, np.bincount(cells)).tolist() == [0, 1, 0]


def test_a_cell_is_used_up_in_a_new_order_each_cycle() -> None:
    shelves = Shelves(np.array([3, 50, 7]), seed=1)
    ids = shelves.example_ids(np.ones(100, dtype=np.int64), np.arange(100))
    first, second = ids[:50], ids[50:]
    assert sorted(first) == sorted(second) == list(range(3, 53))
    assert (first == second).sum() < 10


@pytest.mark.parametrize("change", ["seed", "cell"])
def test_orders_differ_by_seed_and_cell(change: str) -> None:
    sizes, turns = np.array([50, 50]), np.arange(50)
    one = Shelves(sizes, 1).example_ids(np.zeros(50, dtype=np.int64), turns)
    if change == "seed":
        other = Shelves(sizes, 2).example_ids(np.zeros(50, dtype=np.int64), turns)
    else:
        other = Shelves(sizes, 1).example_ids(np.ones(50, dtype=np.int64), turns) - 50
    assert (one == other).sum() < 10
