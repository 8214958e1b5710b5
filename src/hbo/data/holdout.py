"""Which examples are kept out of training: chosen by a hash of the prompt, never by a seed.

A prompt is held out when its hash falls below the fraction. The choice is made for each prompt by
itself, so rows may be appended or reordered, subsets added and seeds changed, and what was held out
stays held out; the same prompt is on the same side wherever it appears, in every subset. The
held-out prompts of a subset are then halved exactly, in the order of a second hash: a coin for each
would leave some small subset with a single test example.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hbo.errors import ConfigError, DataError
from hbo.mixture import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Holdout:
    """Row numbers of the three parts of one subset, each ascending.

    Args:
        train: Rows to train on.
        validation: Rows that may guide a policy or a choice.
        test: Rows that are only reported on.
    """

    train: IntArray
    validation: IntArray
    test: IntArray


def hold_out(prompts: Sequence[str], fraction: float, *, where: str | None = None) -> Holdout:
    """Split the rows of one subset into training, validation and test rows.

    With u(p) and v(p) in [0, 1) two hashes of prompt p, the rows with u(p) < ``fraction`` are held
    out, and of these the half with the smaller v(p) is validation. Where that leaves fewer than two
    prompts, the two with the smallest u are held out, and where it leaves nothing to train on, the
    one with the largest u is trained on.

    Args:
        prompts: (n,) prompt of each row (``hbo.data.formats.prompt_text``).
        fraction: Share of prompts to hold out, in (0, 0.5].
        where: The subset's place, for messages.

    Returns:
        The rows of each part. Validation and test have at least one row each, and no prompt is on
        two sides.

    Raises:
        ConfigError: ``fraction`` is out of range.
        DataError: Fewer than three different prompts.

    Example:
        >>> parts = hold_out([f"question {i}" for i in range(100)], 0.1)
        >>> len(parts.train), len(parts.validation), len(parts.test)
        (93, 3, 4)
    """
    if not 0 < fraction <= 0.5:
        raise ConfigError(
            f"evaluation.holdout is {fraction}; allowed are numbers above 0 up to 0.5"
        )
    distinct, rows = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    if len(distinct) < 3:
        raise DataError(
            f"{len(distinct)} different prompts are too few to hold out two and train on the rest: "
            "add records, give eval_files or eval_split, or leave this subset out",
            where=where,
        )
    first, second = _hashes(distinct)
    chosen = first < fraction
    order = np.argsort(first, kind="stable")
    chosen[order[:2]] = True
    chosen[order[-1]] = False
    validation = _validation_half(second, chosen)
    return Holdout(
        train=np.flatnonzero(~chosen[rows]),
        validation=np.flatnonzero(validation[rows]),
        test=np.flatnonzero((chosen & ~validation)[rows]),
    )


def halve(prompts: Sequence[str], *, where: str | None = None) -> tuple[IntArray, IntArray]:
    """Split the rows of a given evaluation set into validation and test, by the same hash.

    Args:
        prompts: (n,) prompt of each row.
        where: The evaluation set's place, for messages.

    Returns:
        Validation rows and test rows, at least one each.

    Raises:
        DataError: Fewer than two different prompts.
    """
    distinct, rows = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    if len(distinct) < 2:
        raise DataError(
            "an evaluation set needs at least two different prompts, one for validation and one "
            "for test: add records, or leave eval_files and eval_split out to hold out a fraction",
            where=where,
        )
    _, second = _hashes(distinct)
    validation = _validation_half(second, np.ones(len(distinct), dtype=bool))
    return np.flatnonzero(validation[rows]), np.flatnonzero(~validation[rows])


def rows_without(prompts: Sequence[str], others: Sequence[str]) -> IntArray:
    """Rows whose prompt is not among the others: training rows that are not held out too.

    Example:
        >>> rows_without(["a", "b", "c"], ["b"]).tolist()
        [0, 2]
    """
    taken = set(others)
    return np.flatnonzero([prompt not in taken for prompt in prompts]).astype(np.int64)


def some_rows(prompts: Sequence[str], share: float) -> IntArray:
    """Rows of a share of the prompts, chosen by hash: what a smaller share has, a larger one has.

    Args:
        prompts: (n,) prompt of each row.
        share: Of the distinct prompts, in (0, 1]; rounded up.

    Returns:
        Their rows, ascending.

    Example:
        >>> some_rows(["a", "b", "c", "b"], 0.6).tolist()
        [0, 1, 3]
    """
    distinct, rows = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)
    _, second = _hashes(distinct)
    chosen = np.zeros(len(distinct), dtype=bool)
    chosen[np.argsort(second, kind="stable")[: math.ceil(share * len(distinct))]] = True
    return np.flatnonzero(chosen[rows])


def _hashes(prompts: np.ndarray[tuple[int], np.dtype[np.object_]]) -> tuple[FloatArray, FloatArray]:
    """Two independent uniform numbers in [0, 1) for each prompt."""
    digests = b"".join(
        hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for prompt in prompts
    )
    # 53 bits: as many as a float64 holds without rounding up to 1.
    numbers = (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)).astype(np.float64) / 2.0**53
    pairs = numbers.reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _validation_half(
    numbers: FloatArray, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """The half of the chosen prompts with the smaller numbers; test keeps the odd one."""
    validation = np.zeros_like(chosen)
    order = np.argsort(np.where(chosen, numbers, np.inf), kind="stable")
    validation[order[: chosen.sum() // 2]] = True
    return validation
