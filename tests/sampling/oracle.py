"""The stream of draws written the slow, obvious way: plain Python, one draw at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

WORD = 2**64


def uniform(seed: int, number: int) -> float:
    """Uniform number ``number`` of a seed, from the beginning of the sequence."""
    word = int(np.random.Philox(key=seed).random_raw(number + 1)[-1])
    return (word >> 11) / 2**53


def mixed(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def derived(parent: int, number: int) -> int:
    return mixed((parent + (number + 1) * 0x9E3779B97F4A7C15) % WORD)


def permuted(position: int, size: int, key: int) -> int:
    """Place ``position`` of the shuffle: a Feistel network on a grid, walked until inside."""
    rows = max(math.isqrt(size - 1) + 1, 4)
    columns = max(-(-size // rows), 4)
    while True:
        left, right = divmod(position, columns)
        for number in range(8):
            round_key = key + number * 0x9E3779B97F4A7C15
            if number % 2 == 0:
                amount = (mixed((round_key + right) % WORD) >> 32) * rows >> 32
                left = (left + amount) % rows
            else:
                amount = (mixed((round_key + left) % WORD) >> 32) * columns >> 32
                right = (right + amount) % columns
        position = left * columns + right
        if position < size:
            return position


def slow_stream(
    sizes: Sequence[Sequence[int]],
    seed: int,
    laws: Sequence[tuple[int, Sequence[Sequence[float]]]],
    max_draws: Sequence[int] | None = None,
) -> Iterator[int]:
    """Example ids of draws 0, 1, 2, ...; ends where nothing is left to draw."""
    groups = len(sizes[0])
    flat = [size for row in sizes for size in row]
    counts = [0] * len(flat)
    draw = 0
    while True:
        in_force = [table for start, table in laws if start <= draw][-1]
        law = [probability for row in in_force for probability in row]
        for subset in range(len(sizes)):
            drawn = sum(counts[subset * groups : (subset + 1) * groups])
            if max_draws is not None and 0 <= max_draws[subset] <= drawn:
                law[subset * groups : (subset + 1) * groups] = [0.0] * groups
        if not any(law):
            return
        target = uniform(seed, draw) * sum_one_by_one(law)[-1]
        cell = next(c for c, edge in enumerate(sum_one_by_one(law)) if target < edge)
        cycle, place = divmod(counts[cell], flat[cell])
        key = derived(derived(derived(seed, 0), cell), cycle)
        yield sum(flat[:cell]) + permuted(place, flat[cell], key)
        counts[cell] += 1
        draw += 1


def sum_one_by_one(values: Sequence[float]) -> list[float]:
    sums, total = [], 0.0
    for value in values:
        total += value
        sums.append(total)
    return sums
