"""A keyed bijection of 0 .. size - 1: a shuffle of any size that stores nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hbo.mixture import IntArray

WordArray = NDArray[np.uint64]

ROUNDS = 8
"""With 8 rounds every order of up to 7 items is equally likely to a part in a hundred."""

_SMALLEST_SIDE = 4  # narrower grids mix slowly: 2 x 2 needs 12 rounds for the same evenness
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: multiples of it never line up
_FIRST_SHIFT, _SECOND_SHIFT, _THIRD_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_FIRST_FACTOR, _SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_HALF_WORD = np.uint64(32)


def mix(words: WordArray) -> WordArray:
    """Scramble 64-bit words, in place, so that each input bit moves every output bit.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators"); itself a bijection of 64-bit words.
    """
    words ^= words >> _FIRST_SHIFT
    words *= _FIRST_FACTOR
    words ^= words >> _SECOND_SHIFT
    words *= _SECOND_FACTOR
    words ^= words >> _THIRD_SHIFT
    return words


def derive_keys(parents: WordArray, numbers: IntArray) -> WordArray:
    """One 64-bit key for each (parent key, number) pair; neighbours get unrelated keys."""
    return mix(parents + (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def grid_sides(sizes: WordArray) -> tuple[WordArray, WordArray]:
    """Rows and columns of the near-square grid that holds ``sizes`` places, each at least 4."""
    roots = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    rows = np.maximum(roots, np.uint64(_SMALLEST_SIDE))
    columns = np.maximum((sizes + rows - np.uint64(1)) // rows, np.uint64(_SMALLEST_SIDE))
    return rows, columns


def permute(positions: ArrayLike, size: ArrayLike, key: ArrayLike) -> IntArray:
    """Where each position goes in the shuffle of 0 .. ``size`` - 1 that ``key`` names.

    A Feistel network on a grid (Black and Rogaway 2002, "Ciphers with arbitrary finite domains",
    method 3): position x is row l = x div c and column r = x mod c of an R x c grid with
    R c >= size. Eight rounds move, in turn, l by F(r) modulo R and r by F(l) modulo c; each can be
    undone, so the whole is a bijection of the grid. A result outside the ``size`` wanted is sent
    through again ("cycle walking") until it is inside, which keeps it a bijection; the grid is so
    near square that this is rare from a few hundred items on. Time does not depend on ``size`` and
    memory only on the number of positions.

    Args:
        positions: (n,) integers, each in 0 .. size - 1.
        size: How many items each position's shuffle has, one for all or (n,); from 1 to 2^62.
        key: 64-bit key of the shuffle, one for all or (n,).

    Returns:
        (n,) integers in 0 .. size - 1.

    Raises:
        ValueError: A position is outside its shuffle.

    Example:
        >>> sorted(permute(range(6), 6, 42).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    places, sizes, keys = np.broadcast_arrays(
        np.atleast_1d(np.asarray(positions, dtype=np.uint64)),
        np.asarray(size, dtype=np.uint64),
        np.asarray(key, dtype=np.uint64),
    )
    if (places >= sizes).any():
        raise ValueError("a position is outside 0 .. size - 1")
    rows, columns = grid_sides(sizes)
    result = _encrypt(places, rows, columns, keys)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        walked = _encrypt(result[outside], rows[outside], columns[outside], keys[outside])
        result[outside] = walked
        outside = outside[walked >= sizes[outside]]
    return result.astype(np.int64)


def _encrypt(places: WordArray, rows: WordArray, columns: WordArray, keys: WordArray) -> WordArray:
    """One pass of the network over its whole grid."""
    left = places // columns
    right = places - left * columns
    for number in range(ROUNDS):
        round_keys = keys + np.uint64(number * _GOLDEN % 2**64)
        if number % 2 == 0:
            _shift(left, rows, round_keys + right)
        else:
            _shift(right, columns, round_keys + left)
    left *= columns
    left += right
    return left


def _shift(values: WordArray, modulus: WordArray, words: WordArray) -> None:
    """Add to each value, modulo ``modulus``, an amount scrambled from its word; in place."""
    mix(words)
    words >>= _HALF_WORD
    words *= modulus
    words >>= _HALF_WORD  # (32 random bits x modulus) / 2^32: even over 0 .. modulus - 1
    values += words
    # A value below the modulus wraps round to a huge number here, so the minimum leaves it alone.
    np.minimum(values, values - modulus, out=values)
