"""Several ranks in one process: threads that add their arrays where they meet."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hbo.measure.ranks import Ranks


class Adder:
    """The sum over ranks; a rank that never comes leaves the others waiting, until the timeout."""

    def __init__(self, world_size: int, timeout: float = 30.0) -> None:
        self.arrays: list[Any] = [None] * world_size
        self.calls = 0
        self.barrier = threading.Barrier(world_size, timeout=timeout)

    def add(self, rank: int, array: np.ndarray) -> np.ndarray:
        self.arrays[rank] = array.copy()
        self.barrier.wait()
        total = np.sum(self.arrays, axis=0)
        self.calls += rank == 0
        self.barrier.wait()
        return total


def on_ranks(world_size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """What each rank's work returns; an exception stands for the result of the rank it befell."""
    adder = Adder(world_size)

    def one(rank: int) -> Any:
        try:
            return work(Ranks(rank, world_size, lambda array: adder.add(rank, array)))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(one, range(world_size)))
