"""Saved streams: exact resume at any cut, and refusal of what does not belong or is damaged."""

import copy
import json
import struct
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


def packed(law: object) -> str:
    """A law as the state writes it, cell by cell."""
    return b"".join(struct.pack("<d", cell) for row in law for cell in row).hex()


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
        "schema", "seed", "sizes_sha256", "max_draws", "position", "counts", "laws", "history",
    ]  # fmt: skip
    assert state["history"] == [{"draw": 0, "law": 0}, {"draw": 40, "law": 1}]
    assert state["laws"] == [packed(LAW), packed(LATER)]
    assert state["max_draws"] == [-1, 15]


def test_a_long_history_stays_small() -> None:
    stream = Stream(np.full((8, 4), 10), 0)
    for update in range(50):
        law = np.random.default_rng(update).dirichlet(np.ones(32)).reshape(8, 4)
        stream.push(update * 200, law)
    assert len(json.dumps(stream.state_dict())) < 50 * 600


def test_a_law_that_comes_again_is_written_once() -> None:
    stream = Stream(SIZES, 0)
    for draw, law in enumerate([LAW, LATER, LAW, LAW]):
        stream.push(draw, law)
    state = stream.state_dict()
    assert len(state["laws"]) == 2
    assert [point["law"] for point in state["history"]] == [0, 1, 0, 0]
    other = Stream(SIZES, 0)
    other.load_state_dict(state)
    assert [point.probabilities.tolist() for point in other.history] == [
        law.tolist() for law in (LAW, LATER, LAW, LAW)
    ]


def test_laws_come_back_bit_for_bit_and_read_only() -> None:
    law = np.array([[1 / 3, 5e-324], [2 / 3, 0.0]])
    stream = Stream(SIZES, 0)
    stream.push(0, law)
    other = Stream(SIZES, 0)
    other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    back = other.history[0].probabilities
    assert back.tobytes() == law.tobytes()
    with pytest.raises(ValueError, match="read-only"):
        back[0, 0] = 1


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
        (["schema"], 99, "schema 99; this version reads schema 2"),
        (["schema"], 1, "schema 1; this version reads schema 2"),
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
        (["history", 1, "law"], 2, "names law 2 of 2 laws"),
        (["history", 1, "law"], -1, "history law is -1"),
        (["history", 1, "law"], None, "history law is None"),
        (["laws"], {}, "not a list of texts"),
        (["laws"], [3], "not a list of texts"),
        (["laws", 1], packed([[1, 1], [1, 0]]), "saved law 1 must sum to 1, not 3"),
        (["laws", 1], packed([[1e308, 1e308], [1, 0]]), "saved law 1 must sum to 1, not inf"),
        (["laws", 1], packed([[np.nan, 1], [0, 0]]), "saved law 1 must be finite"),
        (["laws", 1], packed([[np.inf, 1], [0, 0]]), "saved law 1 must be finite"),
        (["laws", 0], packed([[1.5, -0.5], [0, 0]]), "saved law 0 must be finite and at least 0"),
        (["laws", 1], packed([[0.5, 0], [0, 0.5]]), r"saved law 1: cell \(1, 1\) is empty"),
        (["laws", 1], packed([[0.5, 0.5], [0, 0], [0, 0]]), "law 1 does not have 4 cells"),
        (["laws", 1], packed([[0.5, 0.5]]), "law 1 does not have 4 cells"),
        (["laws", 1], packed(LATER)[:-1], "law 1 is not hex"),
        (["laws", 1], "x" * 64, "law 1 is not hex"),
        (["laws", 1], " " + packed(LATER)[1:], "law 1 is not hex"),
        (["laws", 1], "é" * 64, "law 1 is not hex"),
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


@pytest.mark.parametrize(
    "key", ["schema", "seed", "max_draws", "position", "counts", "laws", "history"]
)
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


@given(
    st.sampled_from(["position", "counts", "laws", "history", "seed", "schema", "max_draws"]), JSON
)
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
