import numpy as np
import pytest

from hbo.errors import DataError, EnvironmentProblem
from hbo.measure.ranks import ONE_RANK, Ranks
from tests.support.fake_ranks import on_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_value_of_one_rank_reaches_all_bit_for_bit(world_size):
    values = np.array([1e-300, np.nan, np.inf, -np.inf, 0.1 + 0.2, -0.0])

    def work(ranks):
        def fill(array):
            if ranks.rank == world_size - 1:
                array[:] = values

        return ranks.combine(len(values), fill)

    for found in [work(ONE_RANK)] if world_size == 1 else on_ranks(world_size, work):
        np.testing.assert_array_equal(found, values)
        assert not np.signbit(found[-1])  # on one rank as on many


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_pieces_are_dealt_in_turn_and_all_ranks_get_all_values_in_order(world_size):
    pieces = ["a", "bcd", "ef", "g"]

    def work(ranks):
        measured = []

        def measure(piece):
            measured.append(piece)
            return np.array([ord(letter) / 3 for letter in piece])

        found = list(ranks.deal(pieces, len, measure))
        return measured, [(piece, values.tolist()) for piece, values in found]

    results = on_ranks(world_size, work)
    expected = [(piece, [ord(letter) / 3 for letter in piece]) for piece in pieces]
    for rank, (measured, found) in enumerate(results):
        assert found == expected
        assert measured == pieces[rank::world_size]


def test_the_failure_of_one_rank_stops_all_within_a_round():
    begun = []

    def work(ranks):
        def measure(piece):
            begun.append(piece)
            if piece == 3:
                raise DataError("broken")
            return np.ones(1)

        return list(ranks.deal(range(9), lambda _piece: 1, measure))

    first, second, third = on_ranks(3, work)
    assert isinstance(first, DataError) and str(first) == "broken"  # piece 3 is rank 0's second
    for other in (second, third):
        assert isinstance(other, EnvironmentProblem)
        assert "rank 0 failed; its own message says why" in str(other)
    assert sorted(begun) == [0, 1, 2, 3, 4, 5]


def test_bad_input_of_one_rank_alone_is_told_by_that_rank():
    def work(ranks, failing):
        def fill(_values):
            if ranks.rank in failing:
                raise DataError("no such file", where=f"disk {ranks.rank}")

        return ranks.combine(0, fill)

    # Rank 0 tells of bad input (status 2) that all ranks meet; here only its own rank knows it.
    _, alone = on_ranks(2, lambda ranks: work(ranks, {1}))
    assert isinstance(alone, EnvironmentProblem) and str(alone) == "disk 1: no such file"
    assert isinstance(alone.__cause__, DataError)
    assert all(isinstance(e, DataError) for e in on_ranks(2, lambda ranks: work(ranks, {0, 1})))


def test_ranks_that_are_gone_are_a_problem_of_the_environment():
    def broken(_array):
        raise RuntimeError("Connection closed by peer")

    ranks = Ranks(0, 2, broken)
    with pytest.raises(EnvironmentProblem, match="another rank is gone; its own message says why"):
        ranks.combine(1, lambda _array: None)
    with pytest.raises(ZeroDivisionError):
        ranks.combine(1, lambda _array: 1 / 0)


def test_one_rank_needs_no_others_and_raises_its_own_error():
    with pytest.raises(ZeroDivisionError):
        ONE_RANK.combine(1, lambda array: 1 / 0)
    assert list(ONE_RANK.deal([], len, np.ones)) == []
