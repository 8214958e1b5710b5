"""The stream against its slow form; cuts, caps, pushes, replay, scale."""

import itertools
import json
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.errors import ConfigError, StateError
from hbo.sampling.stream import Stream
from tests.sampling.oracle import slow_stream

EVEN = np.full((2, 2), 0.25)


@dataclass
class Course:
    """A random mixture, laws with the draws they start at, and caps."""

    sizes: np.ndarray
    seed: int
    laws: list[tuple[int, np.ndarray]]
    max_draws: list[int] | None

    def stream(self, push_up_to: int = 10**9) -> Stream:
        stream = Stream(self.sizes, self.seed, max_draws=self.max_draws)
        for draw, law in self.laws:
            if draw <= push_up_to:
                stream.push(draw, law)
        return stream

    def expected(self, count: int) -> list[int]:
        laws = [(draw, law.tolist()) for draw, law in self.laws]
        slow = slow_stream(self.sizes.tolist(), self.seed, laws, self.max_draws)
        return list(itertools.islice(slow, count))


@st.composite
def courses(draw: st.DrawFn) -> Course:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    cells = shape[0] * shape[1]
    sizes = draw(st.lists(st.integers(0, 6), min_size=cells, max_size=cells).filter(any))
    filled = np.array(sizes) > 0
    starts = [0, *draw(st.lists(st.integers(1, 70), max_size=3, unique=True).map(sorted))]
    laws = []
    for start in starts:
        parts = st.lists(st.sampled_from([0.0, 0.01, 0.2, 1.0]), min_size=cells, max_size=cells)
        law = np.array(draw(parts.filter(lambda part: bool((filled * np.array(part)).any()))))
        law = law * filled
        laws.append((start, (law / law.sum()).reshape(shape)))
    caps = st.lists(st.integers(-1, 40), min_size=shape[0], max_size=shape[0])
    return Course(
        np.array(sizes).reshape(shape),
        draw(st.integers(0, 2**64 - 1)),
        laws,
        draw(st.none() | caps),
    )


@given(courses(), st.lists(st.integers(0, 30), max_size=6))
def test_fast_and_slow_streams_agree_whatever_the_cuts(course: Course, cuts: list[int]) -> None:
    expected = course.expected(sum(cuts))
    stream = course.stream()
    made: list[int] = []
    for cut in cuts:
        if len(made) + cut > len(expected):  # the caps leave less than this
            with pytest.raises(StateError, match="nothing is left to draw"):
                stream.take(cut)
            assert stream.position == len(made)
            stream.take(len(expected) - len(made))
            break
        made += stream.take(cut).tolist()
    assert made == expected[: len(made)]
    assert stream.counts.sum() == stream.position


@given(courses(), st.integers(0, 60))
def test_pushing_late_pushing_early_and_skipping_are_the_same(course: Course, at: int) -> None:
    total = len(course.expected(50))
    at = min(at, total)
    whole = course.stream()
    expected = whole.take(total)
    late = course.stream(push_up_to=at)
    late.skip(at)
    for draw, law in course.laws:
        if draw > at:
            late.push(draw, law)
    assert np.array_equal(late.take(total - at), expected[at:])
    assert np.array_equal(whole.at(at).take(total - at), expected[at:])
    assert np.array_equal(np.concatenate([np.empty(0, np.int64), *whole.replay()]), expected)
    assert np.array_equal(np.concatenate([expected[:0], *whole.replay(at)]), expected[:at])
    assert np.array_equal(late.counts, whole.counts)


@given(courses(), st.lists(st.sampled_from([0, 1, 7, 511, 513, 2500]), max_size=8))
def test_a_look_between_draws_changes_nothing(course: Course, cuts: list[int]) -> None:
    plain, looked_at, skipping = course.stream(), course.stream(), course.stream()
    cells = np.repeat(np.arange(course.sizes.size), course.sizes.ravel())
    left = plain.remaining()
    whole = plain.take(sum(cuts)) if left is None or left >= sum(cuts) else np.empty(0, np.int64)
    done = 0
    for cut in cuts if whole.size else []:
        assert np.array_equal(looked_at.copy().take(cut), whole[done : done + cut])
        assert np.array_equal(looked_at.take(cut), whole[done : done + cut])
        assert np.array_equal(skipping.take(cut // 2), whole[done : done + cut // 2])
        skipping.skip(cut - cut // 2)
        done += cut
        seen = np.bincount(cells[whole[:done]], minlength=course.sizes.size)
        assert np.array_equal(looked_at.counts.ravel(), seen)
        assert looked_at.position == done


def test_a_law_pushed_onto_draws_made_ahead_is_obeyed() -> None:
    stream = Stream([[1000, 0], [0, 1000]], 3)
    stream.push(0, [[1.0, 0], [0, 0]])
    assert (stream.take(5) < 1000).all()
    stream.push(8, [[0, 0], [0, 1.0]])
    assert [int(i) // 1000 for i in stream.take(6)] == [0, 0, 0, 1, 1, 1]


def test_blocks_do_not_show() -> None:
    def stream() -> Stream:
        made = Stream([[5000, 300], [7, 40_000]], 3, max_draws=[-1, 90_000])
        made.push(0, [[0.1, 0.2], [0.1, 0.6]])
        made.push(70_001, [[0.4, 0.3], [0.2, 0.1]])
        return made

    whole = stream().take(200_000)
    for cut in (1, 65_535, 65_536, 65_537, 131_073):
        cut_stream = stream()
        parts = [cut_stream.take(cut), cut_stream.take(200_000 - cut)]
        assert np.array_equal(np.concatenate(parts), whole)
    skipped = stream()
    skipped.skip(150_000)
    assert np.array_equal(skipped.take(50_000), whole[150_000:])


def test_the_first_draws_are_the_same_on_every_machine_and_version() -> None:
    stream = Stream([[3, 3], [5, 0]], 42, max_draws=[-1, 4])
    stream.push(0, [[0.3, 0.2], [0.5, 0.0]])
    assert stream.take(14).tolist() == [7, 1, 6, 4, 3, 5, 0, 2, 10, 9, 1, 2, 0, 1]


def test_a_cell_is_used_up_before_it_repeats() -> None:
    stream = Stream([[20, 10], [40, 30]], 5)
    stream.push(0, EVEN)
    ids = stream.take(2000)
    edges = [0, 20, 30, 70, 100]
    for low, high in itertools.pairwise(edges):
        inside = ids[(ids >= low) & (ids < high)]
        for start in range(0, len(inside) - (high - low) + 1, high - low):
            assert len(set(inside[start : start + high - low].tolist())) == high - low


def test_draws_follow_the_law_in_force() -> None:
    stream = Stream([[100, 100], [100, 0]], 9)
    stream.push(0, [[0.7, 0.1], [0.2, 0.0]])
    stream.push(10_000, [[0.1, 0.1], [0.8, 0.0]])
    stream.take(10_000)
    before = stream.counts
    stream.take(10_000)
    assert before / 10_000 == pytest.approx(np.array([[0.7, 0.1], [0.2, 0]]), abs=0.02)
    assert (stream.counts - before) / 10_000 == pytest.approx(
        np.array([[0.1, 0.1], [0.8, 0]]), abs=0.02
    )


def test_one_seed_gives_two_laws_the_same_random_numbers() -> None:
    ids = []
    for law in ([[0.5, 0.0], [0.5, 0.0]], [[0.51, 0.0], [0.49, 0.0]]):
        stream = Stream(np.full((2, 2), 10**6), 1)
        stream.push(0, law)
        ids.append(stream.take(1000) // (2 * 10**6))
    assert (ids[0] != ids[1]).mean() < 0.03


def test_at_its_cap_a_subset_stops_and_the_others_share_in_proportion() -> None:
    stream = Stream([[100], [100], [100]], 2, max_draws=[10, -1, np.inf])
    stream.push(0, [[0.8], [0.15], [0.05]])
    stream.take(10_000)
    assert stream.counts[0, 0] == 10
    assert stream.exhausted.tolist() == [True, False, False]
    assert stream.counts[1, 0] / stream.counts[2, 0] == pytest.approx(3, rel=0.1)
    assert stream.history[0].probabilities[0, 0] == 0.8


def test_caps_can_be_used_up_exactly_and_no_further() -> None:
    stream = Stream([[3, 2], [4, 0]], 2, max_draws=[10, 8])
    stream.push(0, [[0.2, 0.2], [0.6, 0]])
    assert stream.remaining() == 18
    ids = stream.take(18)
    assert sorted(ids.tolist()) == sorted([*range(9), *range(9)])
    assert stream.remaining() == 0
    with pytest.raises(StateError, match="nothing is left to draw at draw 18"):
        stream.take(1)
    assert stream.position == 18
    assert stream.take(0).size == 0


def test_a_cap_on_one_subset_leaves_no_end() -> None:
    assert Stream([[1], [1]], 0, max_draws=[5, -1]).remaining() is None


def test_the_history_has_every_law_as_it_was_pushed() -> None:
    stream = Stream([[1, 1], [1, 1]], 0)
    with pytest.raises(StateError, match="no probabilities are in force at draw 0"):
        stream.take(1)
    stream.push(0, EVEN)
    later = np.array([[0.7, 0.1], [0.1, 0.1]])
    stream.push(5, later)
    assert [point.draw for point in stream.history] == [0, 5]
    assert np.array_equal(stream.history[0].probabilities, EVEN)
    assert np.array_equal(stream.history[1].probabilities, later)
    with pytest.raises(ValueError, match="read-only"):
        stream.history[1].probabilities[0, 0] = 1


def test_a_second_law_for_a_draw_to_come_replaces_the_first() -> None:
    stream = Stream([[1, 1], [1, 1]], 0)
    stream.push(0, [[1.0, 0], [0, 0]])
    stream.push(0, [[0, 0], [0, 1.0]])
    assert stream.take(5).tolist() == [3] * 5
    assert len(stream.history) == 1


def test_a_law_cannot_come_too_late_or_out_of_order() -> None:
    stream = Stream([[1, 1], [1, 1]], 0)
    with pytest.raises(StateError, match="must start at draw 0, not 3"):
        stream.push(3, EVEN)
    stream.push(0, EVEN)
    stream.take(4)
    with pytest.raises(StateError, match="from draw 3, but 4 draws were made already"):
        stream.push(3, EVEN)
    stream.push(8, EVEN)
    with pytest.raises(StateError, match="from draw 6 after some from draw 8"):
        stream.push(6, EVEN)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ([[0.5, 0.5]], r"have shape \(1, 2\); the mixture has \(2, 2\)"),
        ([[0.5, 0.6], [0.0, 0.0]], r"must sum to 1, not 1\.1"),
        ([[1.5, -0.5], [0.0, 0.0]], "finite and at least 0"),
        ([[np.nan, 0.5], [0.5, 0.0]], "finite and at least 0"),
        ([[0.5, 0.25], [0.0, 0.25]], r"cell \(1, 1\) is empty"),
        ([["x", 0.25], [0.0, 0.25]], "not a table of numbers"),
    ],
)
def test_what_is_no_law_is_refused(law: list[list[float]], message: str) -> None:
    with pytest.raises(StateError, match=message):
        Stream([[1, 1], [1, 0]], 0).push(0, law)


@pytest.mark.parametrize(
    ("sizes", "max_draws", "message"),
    [
        ([1, 2], None, "sizes"),
        ([[0, 0]], None, "sizes"),
        ([[-1, 3]], None, "sizes"),
        ([[1, 3]], [1, 2], "1 whole numbers"),
        ([[1, 3]], [0.5], "1 whole numbers"),
        ([[1, 3]], [np.nan], "1 whole numbers"),
        ([[1, 3]], [-2], "at least 0, or -1"),
    ],
)
def test_impossible_streams_are_refused(sizes: object, max_draws: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Stream(sizes, 0, max_draws=max_draws)


def test_a_copy_goes_its_own_way() -> None:
    stream = Stream([[50, 50], [50, 50]], 0)
    stream.push(0, EVEN)
    stream.take(10)
    twin = stream.copy()
    ahead = twin.take(20)
    twin.push(40, [[1.0, 0], [0, 0]])
    assert (stream.position, twin.position) == (10, 30)
    assert len(stream.history) == 1
    assert np.array_equal(stream.take(20), ahead)


def test_negative_counts_are_refused() -> None:
    stream = Stream([[1]], 0)
    stream.push(0, [[1.0]])
    for call in (stream.take, stream.skip, stream.at):
        with pytest.raises(ValueError, match=r"negative|cannot make -1"):
            call(-1)


@pytest.fixture(scope="module")
def large() -> Stream:
    """A billion examples in 1,000 subsets x 4 groups."""
    subset_sizes = np.random.default_rng(0).lognormal(0, 1.5, 1000)
    sizes = np.repeat((subset_sizes / subset_sizes.sum() * 2.5e8).astype(np.int64)[:, None], 4, 1)
    sizes[0] += (10**9 - sizes.sum()) // 4
    stream = Stream(sizes, 1, max_draws=sizes.sum(axis=1) * 4)
    stream.push(0, sizes / sizes.sum())
    return stream


def test_a_billion_examples_cost_no_memory(large: Stream) -> None:
    tracemalloc.start()
    stream = large.copy()
    ids = stream.take(70_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids.max() > 9 * 10**8
    assert len(np.unique(ids)) == len(ids)
    assert peak < 20 * 2**20


def test_a_saved_place_of_a_billion_examples_is_reached_at_once(large: Stream) -> None:
    stream = large.copy()
    stream.skip(1_000_000)
    laws = np.random.default_rng(3).dirichlet(np.ones(4000), 99).reshape(99, 1000, 4)
    for number, law in enumerate(laws):
        stream.push((number + 1) * 1_000_000, law)
    saved = json.dumps(stream.state_dict())
    fresh = Stream(large.sizes, 1, max_draws=large.max_draws)
    start = time.perf_counter()
    fresh.load_state_dict(json.loads(saved))
    first = fresh.take(1)
    assert time.perf_counter() - start < 0.1  # measured 9 ms; the rest is for a busy machine
    assert np.array_equal(first, stream.take(1))


def test_many_caps_met_together_do_not_slow_the_stream_down() -> None:
    stream = Stream(np.full((400, 1), 20), 1, max_draws=np.full(400, 20))
    stream.push(0, np.full((400, 1), 1 / 400))
    ids = stream.take(8000)
    assert np.array_equal(np.sort(ids), np.arange(8000))
