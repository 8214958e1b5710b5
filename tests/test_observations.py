"""What is observed is summed the same in any order, and comes back from a checkpoint to the bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbo.mixture import Mixture
from hbo.observations import Observations, loss_signals
from hbo.signals import BATCH_GRADIENT_NORM, EXAMPLE_SIGNALS, Signals

SIZES = np.array([[3, 2, 1], [1, 0, 0], [4, 4, 4]])
MIXTURE = Mixture(("a", "b", "c"), SIZES)
EMPTY: dict[str, Any] = {"now": {}, "before": {}, "first": {}}


def observed(ids: list[int], losses: list[float], *, interval: int = 2) -> Observations:
    """Observations of these examples one by one, an interval closed after every few of them."""
    made = Observations(MIXTURE)
    for count, (number, loss) in enumerate(zip(ids, losses, strict=True), 1):
        example, column = np.array([number]), np.array([loss])
        made.observe(example, loss_signals(column, column / 3))
        made.train(example, column, np.array([7.0]))
        made.gather()
        if count % interval == 0:
            made.close()
    return made


def loaded(state: dict[str, Any]) -> Observations:
    again = Observations(MIXTURE)
    again.load_state_dict(json.loads(json.dumps(state)))
    return again


def numbers(signals: Signals) -> dict[str, Any]:
    """Everything that a policy sees, as bytes."""
    tables = {
        f"{when} {name}": table.to_array().tobytes()
        for when in ("now", "before", "first")
        for name, table in getattr(signals, when).items()
    }
    return tables | {name: value.tobytes() for name, value in signals.whole.items()}


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, MIXTURE.num_examples - 1),
            st.floats(-1e6, 1e6) | st.sampled_from([1e200, float("nan"), float("inf")]),
        ),
        max_size=7,
    )
)
def test_a_saved_state_is_read_to_the_last_bit(rows: list[tuple[int, float]]) -> None:
    made = observed([number for number, _ in rows], [loss for _, loss in rows])
    made.observe_whole(BATCH_GRADIENT_NORM, np.array([1 / 3, np.nan, 2e7 / 7]))
    made.gather()
    again = loaded(made.state_dict())
    assert again.state_dict() == made.state_dict()
    assert again.totals.tobytes() == made.totals.tobytes()
    assert numbers(again.signals(3, SIZES)) == numbers(made.signals(3, SIZES))


def test_a_loaded_state_goes_on_as_if_nothing_was() -> None:
    ids, losses = [0, 5, 6, 7, 18, 6, 0], [1.5, 2.0, 0.25, 1 / 3, 2 / 7, 9.0, 1.0]
    whole, first = observed(ids, losses, interval=7), observed(ids[:4], losses[:4], interval=9)
    second = loaded(first.state_dict())
    for number, loss in zip(ids[4:], losses[4:], strict=True):
        example, column = np.array([number]), np.array([loss])
        second.observe(example, loss_signals(column, column / 3))
        second.train(example, column, np.array([7.0]))
    second.gather()
    second.close()
    assert second.state_dict() == whole.state_dict()


def test_signals_taken_before_more_is_observed_stay_as_they_are() -> None:
    made = observed([0, 5], [1.0, 2.0], interval=9)
    seen = made.signals(2, SIZES)
    before, totals = numbers(seen), made.totals
    made.observe(np.array([0]), loss_signals(np.array([4.0])))
    made.train(np.array([0]), np.array([4.0]), np.array([7.0]))
    made.gather()
    assert numbers(seen) == before
    assert totals.tolist() == [[21.0, 0, 0], [14.0, 0, 0], [0, 0, 0]]
    made.close()
    assert made.totals[1].tolist() == [21.0, 0, 0]
    assert not made.signals(3, SIZES).now


def test_only_cells_that_hold_something_take_room() -> None:
    mixture = Mixture(tuple(map(str, range(1000))), np.full((1000, 4), 10))
    made = Observations(mixture)
    some = np.arange(0, 40_000, 400)
    made.observe(some, dict.fromkeys(sorted(EXAMPLE_SIGNALS), np.full(len(some), 1 / 3)))
    made.gather()
    made.close()
    # 100 cells of 3 numbers of 16 digits, and a bit for each of 4,000; six signals, twice.
    assert len(json.dumps(made.state_dict())) < 12 * (100 * 3 * 16 + 1000 + 30)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-2],
        lambda text: text[:-1],
        lambda text: text + "00" * 8,
        lambda text: "",
        lambda text: "ff" + text[2:],  # the bits of the first cells
        lambda text: text[:-4] + "f07f",  # infinity
        lambda text: "zz" + text[2:],
        lambda text: "\ud800" + text,
        lambda text: [[1.0]],
        lambda text: None,
        lambda text: 10**400,
    ],
)
@pytest.mark.parametrize("part", ["now", "before", "first"])
def test_a_damaged_table_is_an_error_and_changes_nothing(part: str, damage: Any) -> None:
    state = observed([0, 6, 18], [1.0, 2.0, 3.0]).state_dict()
    state[part]["loss"] = damage(state[part]["loss"])
    fresh = Observations(MIXTURE)
    with pytest.raises((ValueError, TypeError)):
        fresh.load_state_dict(state)
    assert fresh.state_dict() == EMPTY


def test_a_table_of_another_mixture_or_an_unknown_signal_is_an_error() -> None:
    state = observed([0, 6], [1.0, 2.0]).state_dict()
    smaller = Observations(Mixture(("a", "b"), SIZES[:2, :2]))
    with pytest.raises(ValueError, match=r"buffer size|no table of shape"):
        smaller.load_state_dict(state)
    with pytest.raises(KeyError):
        Observations(MIXTURE).load_state_dict(EMPTY | {"now": {"colour": ""}})
