"""Counter-based random numbers: the n-th number of a seed, without the n before it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hbo.errors import ConfigError
from hbo.mixture import FloatArray

_WORDS_PER_BLOCK = 4  # one Philox-4x64 counter value yields four 64-bit words
_TO_UNIT = 2.0**-53  # a float64 holds 53 bits exactly


def check_seed(seed: object) -> int:
    """Return ``seed`` as a plain integer.

    Raises:
        ConfigError: It is not an integer from 0 to 2^64 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ConfigError(f"seed must be an integer from 0 to 2^64 - 1, got {seed!r}")
    return int(seed)


def raw_words(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Words ``start .. start + count - 1`` of the 64-bit random sequence of ``seed``.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") encrypts a counter,
    so any place of the sequence costs the same. Only the raw words of NumPy's generator are used:
    those are kept equal between NumPy versions, its derived distributions are not.

    Args:
        seed: From 0 to 2^64 - 1.
        start: Number of the first word, from 0.
        count: How many words.
    """
    block, skip = divmod(start, _WORDS_PER_BLOCK)
    words = np.random.Philox(key=seed, counter=block).random_raw(skip + count)
    return np.asarray(words[skip:], dtype=np.uint64)


def uniforms(seed: int, start: int, count: int) -> FloatArray:
    """Uniform numbers ``start .. start + count - 1`` of ``seed``, each in [0, 1).

    Args:
        seed: From 0 to 2^64 - 1.
        start: Number of the first one, from 0.
        count: How many.

    Returns:
        (count,) multiples of 2^-53.

    Example:
        >>> bool((uniforms(7, 10, 5)[2:] == uniforms(7, 12, 3)).all())
        True
    """
    return (raw_words(seed, start, count) >> np.uint64(11)).astype(np.float64) * _TO_UNIT
