"""The records of one subset on their way to the mixture: canonical, then encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hbo.data.formats import Example, extra_columns, normalise, prompt_text
from hbo.data.readers import SKIP_HINT, OnBad, Record
from hbo.data.rendering import Renderer
from hbo.errors import ConfigError, DataError
from hbo.measure.examples import Encoded
from hbo.mixture import FloatArray, IntArray

ON_BAD_RECORD = ("error", "skip")

COLUMN = "column:"
"""A difficulty metric that starts so names a column of the records."""


@dataclass(frozen=True)
class Subset:
    """Canonical examples of one subset, with what was left aside and where each came from.

    Args:
        name: The subset's name.
        examples: (n,) canonical examples (``hbo.data.formats``).
        extras: (n,) columns outside the format.
        places: (n,) where each example came from.
    """

    name: str
    examples: tuple[Example, ...]
    extras: tuple[dict[str, Any], ...]
    places: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def prompts(self) -> list[str]:
        """(n,) prompt of each example: the key of the holdout."""
        return [prompt_text(example) for example in self.examples]

    def take(self, rows: IntArray) -> Subset:
        """The examples of the given rows, in that order."""
        chosen = rows.tolist()
        return Subset(
            self.name,
            tuple(self.examples[row] for row in chosen),
            tuple(self.extras[row] for row in chosen),
            tuple(self.places[row] for row in chosen),
        )

    def column(self, name: str) -> FloatArray:
        """One number per example from a column outside the format (``difficulty: column:NAME``).

        Numbers as text count, as in CSV files.

        Returns:
            (n,) the column.

        Raises:
            DataError: An example lacks the column, or has something else than a finite number.
        """
        return np.array(
            [
                _number(extra, name, place)
                for extra, place in zip(self.extras, self.places, strict=True)
            ],
            dtype=np.float64,
        )


@dataclass
class SkippedRecords:
    """What to do with records that cannot be used, and which were skipped.

    Args:
        on_bad_record: ``error`` raises, ``skip`` keeps a note and goes on.
        skipped: (place, message) of each record skipped so far.

    Raises:
        ConfigError: ``on_bad_record`` is neither.
    """

    on_bad_record: str = "error"
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_bad_record not in ON_BAD_RECORD:
            raise ConfigError(
                f"on_bad_record is {self.on_bad_record!r}; "
                f"allowed are {' and '.join(ON_BAD_RECORD)}"
            )

    def on_bad(self, error: DataError) -> None:
        """Raise the error or note it."""
        if self.on_bad_record == "error":
            raise error
        self.skipped.append((error.where or "", error.message))


def load_subset(name: str, records: Iterable[Record], bad: SkippedRecords | None = None) -> Subset:
    """Bring the records of one subset into canonical form.

    Args:
        name: The subset's name.
        records: Records as read (``hbo.data.readers``); give their reader ``bad.on_bad`` too.
        bad: What to do with unusable records; ``None`` raises.

    Raises:
        DataError: A record is unusable, or no record is left.
    """
    bad = bad or SkippedRecords()
    examples, extras, places = [], [], []
    for record in records:
        try:
            example = normalise(record.data, record.where)
        except DataError as error:
            bad.on_bad(_with_hint(error))
            continue
        examples.append(example)
        extras.append(extra_columns(record.data))
        places.append(record.where)
    if not examples:
        raise _empty(name, bad.skipped)
    return Subset(name, tuple(examples), tuple(extras), tuple(places))


@dataclass(frozen=True)
class EncodedSubset:
    """Encoded examples of one subset, those that truncation left without a response dropped.

    Args:
        encoded: (n,) tokens and labels.
        rows: (n,) row of each in the ``Subset`` they came from.
        dropped: Rows of that subset whose whole response was cut off.
    """

    encoded: tuple[Encoded, ...]
    rows: IntArray
    dropped: IntArray


def encode_subset(
    subset: Subset,
    renderer: Renderer,
    *,
    on_bad: OnBad | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EncodedSubset:
    """Tokens and labels of a subset's examples.

    Args:
        subset: The examples.
        renderer: How they become tokens.
        on_bad: Called with the error of an example that the chat template refuses; ``None`` raises.
        progress: Called with (examples done, in all) after each.

    Raises:
        DataError: An example is refused, or none is left.
    """
    kept: list[Encoded] = []
    rows: list[int] = []
    dropped: list[int] = []
    for row, (example, place) in enumerate(zip(subset.examples, subset.places, strict=True)):
        try:
            encoded = renderer.encode(example, place)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(_with_hint(error))
        else:
            (dropped if encoded is None else rows).append(row)
            if encoded is not None:
                kept.append(encoded)
        if progress is not None:
            progress(row + 1, len(subset))
    if not kept:
        raise DataError(
            f"subset {subset.name!r} has no example left: in {len(dropped)} of {len(subset)} the "
            f"response is beyond max_length {renderer.max_length}; raise training.max_length or "
            "shorten the prompts"
        )
    return EncodedSubset(tuple(kept), np.array(rows, np.int64), np.array(dropped, np.int64))


def check_alone(metric: str, subset: Subset, encoded: EncodedSubset) -> None:
    """Refuse a metric that compares responses with and without a prompt where one has no prompt.

    Raises:
        DataError: An example consists of a response only.
    """
    for example, row in zip(encoded.encoded, encoded.rows.tolist(), strict=True):
        if example.alone is None:
            raise DataError(
                f"difficulty.metric {metric} compares a response with and without its prompt, and "
                "this record has no prompt apart from what is trained on (a `text` record, or a "
                "loss on all tokens): use perplexity, loss, length or column:NAME",
                where=subset.places[row],
            )


def _with_hint(error: DataError) -> DataError:
    if SKIP_HINT in error.message:
        return error
    return DataError(f"{error.message}; mend it, {SKIP_HINT}", where=error.where)


def _empty(name: str, skipped: Sequence[tuple[str, str]]) -> DataError:
    if not skipped:
        return DataError(
            f"subset {name!r} is empty: its source holds no record; remove it or give it data"
        )
    place, message = skipped[0]
    return DataError(
        f"subset {name!r} is empty: all of its records were skipped, the first because: {message}",
        where=place or None,
    )


def _number(extra: dict[str, Any], name: str, place: str) -> float:
    if name not in extra:
        there = ", ".join(extra) or "none"
        raise DataError(
            f"difficulty.metric {COLUMN}{name} needs a column {name!r} in each record; "
            f"columns outside the format here: {there}",
            where=place,
        )
    value = extra[name]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"column {name!r} must be a finite number, got {value!r:.40}", where=place)
    return number
