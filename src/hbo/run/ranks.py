"""Work that the ranks of a run share, or must all have done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hbo.measure.ranks import Ranks
from hbo.mixture import FloatArray

Result = TypeVar("Result")


def all_ranks() -> Ranks:
    """The ranks of this run, for measurements that they share."""
    from hbo.integrations.ranks import add_over_ranks, world

    rank, world_size = world()
    return Ranks(rank, world_size, add_over_ranks)


def on_all_ranks(work: Callable[[], Result]) -> Result:
    """Do something on every rank; where it fails on one it fails on all, and none waits for it.

    The work itself may open the process group, as ``prepare`` does.

    Args:
        work: Needs no other rank.
    """
    results: list[Result] = []
    failure: list[Exception] = []
    try:
        results.append(work())
    except Exception as error:
        failure.append(error)

    def outcome(_nothing: FloatArray) -> None:
        if failure:
            raise failure[0]

    all_ranks().combine(0, outcome)
    return results[0]
