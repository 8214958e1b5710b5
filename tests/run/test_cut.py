"""The global batch of a resumed run: kept whenever the ranks can share it, else left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.run.cut import configured_cut, keep_global_batch

SIZES = st.integers(1, 24)
RANKS = st.integers(1, 64)


def training(batch: int, accumulation: int, split: bool = False) -> Any:
    return SimpleNamespace(
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        accelerator_config=SimpleNamespace(split_batches=split),
    )


def saved_by(args: Any, ranks: int) -> dict[str, Any]:
    cut = configured_cut(args)
    return cut | {"draws_per_step": cut["per_device_train_batch_size"] * ranks * accumulated(args)}


def accumulated(args: Any) -> int:
    return int(args.gradient_accumulation_steps)


@given(SIZES, SIZES, RANKS, RANKS)
def test_the_product_is_kept_or_nothing_changes(
    batch: int, accumulation: int, before: int, now: int
) -> None:
    args = training(batch, accumulation)
    saved = saved_by(args, before)
    text = keep_global_batch(args, saved, now)
    size, times, wanted = args.per_device_train_batch_size, accumulated(args), batch * accumulation
    wanted *= before
    if wanted % now == 0:
        assert size * times * now == wanted
        assert 1 <= size <= batch  # what fitted into memory still does
        # The largest batch that divides, so that a device has as much to do as can be.
        assert not any(wanted % (other * now) == 0 for other in range(size + 1, batch + 1))
        assert (text is None) == (before == now) == ((size, times) == (batch, accumulation))
    else:
        assert (size, times) == (batch, accumulation)
        assert text is not None and "cannot be dealt to" in text


@given(SIZES, SIZES, RANKS, RANKS)
def test_going_back_to_the_first_ranks_is_the_first_cut(
    batch: int, accumulation: int, before: int, now: int
) -> None:
    first = training(batch, accumulation)
    saved = saved_by(first, before)
    keep_global_batch(training(batch, accumulation), saved, now)  # a stop over there, and back
    assert keep_global_batch(first, saved, before) is None
    assert configured_cut(first) == configured_cut(training(batch, accumulation))


@pytest.mark.parametrize(
    ("args", "saved"),
    [
        (training(4, 1), {}),  # a checkpoint of a training that was not ours
        (training(4, 1), saved_by(training(8, 1), 2)),  # the user wants another batch
        (training(4, 2), saved_by(training(4, 1), 2)),
        (training(4, 1, split=True), saved_by(training(4, 1), 1)),  # ranks divide it already
        (training(4, 1), configured_cut(training(4, 1)) | {"draws_per_step": 0}),
        (training(4, 1), configured_cut(training(4, 1)) | {"draws_per_step": "8"}),
    ],
)
def test_what_is_not_ours_to_decide_is_left_alone(args: Any, saved: dict[str, Any]) -> None:
    before = configured_cut(args)
    assert keep_global_batch(args, saved, 3) is None
    assert configured_cut(args) == before
