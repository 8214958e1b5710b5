"""Saved streams: exact resume at any cut, and refusal of what does not belong or is damaged."""

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.errors import StateError
from hbo.sampling.stream import Stream

SIZES = np.array([[30, 20], [5, 0]])
LAW = np.array([[0.5, 0.3], [0.2, 0.0]])
LATER = np.array([[1 / 3, 1 / 3], [1 / 3, 0.0]])


def made(seed: int = 11) -> Stream:
    stream = Stream(SIZES, seed, max_draws=[-1, 15])
    stream.push(0, LAW)
    stream.push(40, LATER)
    return stream


def saved(position: int = 30) -> dict[str, Any]:
    stream = made()
    stream.skip(position)
    return stream.state_dict()


@given(st.integers(0, 120))
def test_a_stream_saved_at_any_draw_goes_on_exactly(cut: int) -> None:
    stream = made()
    stream.take(cut)
    through_json = json.loads(json.dumps(stream.state_dict()))
    other = Stream(SIZES, 11, max_draws=[-1, 15])
    other.load_state_dict(through_json)
    assert other.position == cut
    assert np.array_equal(other.take(120 - cut), stream.take(120 - cut))
    assert other.state_dict() == stream.state_dict()


def test_a_state_reads_well() -> None:
    state = saved()
    assert list(state) == [
        "schema", "seed", "sizes_sha256", "max_draws", "position", "counts", "history",
    ]  # fmt: skip
    assert state["history"][1] == {"draw": 40, "probabilities": LATER.tolist()}
    assert state["max_draws"] == [-1, 15]


def test_a_long_history_stays_small() -> None:
    stream = Stream(np.full((8, 4), 10), 0)
    for update in range(50):
        law = np.random.default_rng(update).dirichlet(np.ones(32)).reshape(8, 4)
        stream.push(update * 200, law)
    assert len(json.dumps(stream.state_dict())) < 50 * 1000


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Stream(SIZES, 12, max_draws=[-1, 15]), "seed 11, this run has 12"),
        (Stream(SIZES + 1, 11, max_draws=[-1, 15]), "other sizes of subsets or groups"),
        (Stream(SIZES.T, 11, max_draws=[-1, 15]), "other sizes of subsets or groups"),
        (Stream(SIZES, 11), "other caps"),
    ],
)
def test_another_stream_s_state_is_refused_by_name(other: Stream, message: str) -> None:
    before = other.state_dict()
    with pytest.raises(StateError, match=message):
        other.load_state_dict(saved())
    assert other.state_dict() == before


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 99, "schema 99; this version reads schema 1"),
        (["position"], 31, "counts sum to 30 at position 31"),
        (["position"], -1, "position is -1"),
        (["position"], True, "position is True"),
        (["position"], 1e300, "position is 1e"),
        (["counts"], [[30, 0]], r"counts need shape \(2, 2\)"),
        (["counts"], None, r"counts need shape \(2, 2\)"),
        (["counts", 0], [30.5, 0], "count is 30.5"),
        (["counts"], [[10, 0], [20, 0]], "above a cap"),
        (["counts"], [[10, 10], [5, 5]], "in an empty cell"),
        (["history"], {}, "not a list of laws"),
        (["history"], [3], "not a list of laws"),
        (["history"], [], "does not start at draw 0"),
        (["history", 0, "draw"], 2, "does not start at draw 0"),
        (["history", 1, "draw"], 0, "out of order"),
        (["history", 1, "probabilities"], [[1, 1], [1, 1]], "must sum to 1"),
        (["history", 1, "probabilities"], "x", "not a table of numbers"),
        (["history", 1, "probabilities"], [[1], [2, 3]], "not a table of numbers"),
    ],
)
def test_a_damaged_state_is_refused(path: list[Any], value: object, message: str) -> None:
    state = saved()
    inner: Any = state
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    stream = made()
    before = stream.state_dict()
    with pytest.raises(StateError, match=message):
        stream.load_state_dict(state)
    assert stream.state_dict() == before


@pytest.mark.parametrize("key", ["schema", "seed", "max_draws", "position", "counts", "history"])
def test_a_state_with_a_part_missing_is_refused(key: str) -> None:
    state = saved()
    del state[key]
    with pytest.raises(StateError, match="damaged"):
        made().load_state_dict(state)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(["position", "counts", "history", "seed", "schema", "max_draws"]), JSON)
def test_any_damage_is_found_or_harmless(key: str, value: object) -> None:
    state = copy.deepcopy(saved())
    state[key] = value
    stream = made()
    try:
        stream.load_state_dict(state)
    except StateError:
        return
    stream.take(1)


@given(JSON)
def test_anything_but_a_state_is_refused(value: Any) -> None:
    with pytest.raises(StateError):
        made().load_state_dict(value)
