"""Difficulty scores of encoded subsets: measured on a model, counted, or read from a column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hbo.data.subset import COLUMN, EncodedSubset, Subset
from hbo.difficulty.metrics import METRICS, ResponseStatistics, difficulty_scores
from hbo.errors import ConfigError
from hbo.measure.ranks import ONE_RANK, Ranks
from hbo.mixture import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]
Notice = Callable[[str], None]


def needs_model(metric: str) -> bool:
    """Whether a metric must be measured on a model.

    Raises:
        ConfigError: There is no such metric.

    Example:
        >>> needs_model("ifd"), needs_model("length"), needs_model("column:grade")
        (True, False, False)
    """
    if metric.startswith(COLUMN) and metric != COLUMN:
        return False
    if metric not in METRICS:
        raise ConfigError(
            f"difficulty is {metric!r}; allowed are {', '.join(METRICS)} and {COLUMN}NAME"
        )
    return metric != "length"


def difficulty_of(
    metric: str,
    subsets: Mapping[str, Subset],
    encoded: Mapping[str, EncodedSubset],
    statistics: Mapping[str, ResponseStatistics] | None,
) -> dict[str, FloatArray]:
    """Difficulty scores of every subset.

    Args:
        metric: A name in ``METRICS``, or ``column:NAME``.
        subsets: The subsets by name.
        encoded: What is left of them after encoding.
        statistics: Of the encoded examples; ``None`` for metrics that need no model.

    Returns:
        Per subset, one score for each encoded example.

    Raises:
        DataError: A record lacks the column, or a number in it.
    """
    if metric.startswith(COLUMN):
        return column_scores(metric, subsets, encoded)
    statistics = statistics or {name: _counted(subset) for name, subset in encoded.items()}
    return {name: difficulty_scores(metric, statistics[name]) for name in encoded}


def column_scores(
    metric: str, subsets: Mapping[str, Subset], encoded: Mapping[str, EncodedSubset]
) -> dict[str, FloatArray]:
    """Scores of ``column:NAME``: per subset, one for each encoded example."""
    column = metric.removeprefix(COLUMN)
    return {name: subsets[name].take(encoded[name].rows).column(column) for name in encoded}


def measure_subsets(
    model: PreTrainedModel | str,
    encoded: Mapping[str, EncodedSubset],
    *,
    alone: bool,
    pad_id: int,
    cache_dir: str | Path | None = None,
    tokens_per_batch: int = 4096,
    progress: Progress | None = None,
    notice: Notice | None = None,
    ranks: Ranks = ONE_RANK,
) -> dict[str, ResponseStatistics]:
    """Response statistics of all subsets, in one go and through the score cache.

    Args:
        model: A loaded model, or a path from which to load it.
        encoded: The subsets.
        alone: Also measure each response without its prompt.
        pad_id: Any id of the vocabulary.
        cache_dir: Folder of the score cache; ``None``: nothing is kept.
        tokens_per_batch: Padded tokens of a batch.
        progress: Called with (examples done, in all).
        notice: Told of damaged caches.
        ranks: Who measures together; every rank of them calls this.

    Returns:
        Per subset, statistics in the order of its encoded examples.
    """
    from hbo.measure.fingerprints import model_fingerprint, scoring_fingerprint
    from hbo.measure.scoring import score_examples

    module = _loaded(model)
    key = "" if cache_dir is None else scoring_fingerprint(model_fingerprint(module))
    statistics = score_examples(
        module,
        [example for subset in encoded.values() for example in subset.encoded],
        alone=alone,
        cache_dir=cache_dir,
        key=key,
        tokens_per_batch=tokens_per_batch,
        pad_id=pad_id,
        progress=progress,
        notice=notice,
        ranks=ranks,
    )
    return split_statistics(statistics, encoded)


def split_statistics(
    statistics: ResponseStatistics, encoded: Mapping[str, EncodedSubset]
) -> dict[str, ResponseStatistics]:
    """Statistics of all examples, measured in one go subset after subset, for each subset."""
    ends = np.cumsum([len(subset.encoded) for subset in encoded.values()])[:-1]
    loss, tokens = np.split(statistics.loss, ends), np.split(statistics.response_tokens, ends)
    alone: list[FloatArray] | list[None] = [None] * len(encoded)
    if statistics.alone_loss is not None:
        alone = np.split(statistics.alone_loss, ends)
    return {
        name: ResponseStatistics(loss[k], alone[k], tokens[k]) for k, name in enumerate(encoded)
    }


def _counted(subset: EncodedSubset) -> ResponseStatistics:
    """What is known without a model: the number of response tokens."""
    counts = np.array([example.response_tokens for example in subset.encoded], dtype=np.float64)
    return ResponseStatistics(np.full(len(counts), np.nan), None, counts)


def _loaded(model: PreTrainedModel | str) -> PreTrainedModel:
    if not isinstance(model, str):
        return model
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be loaded from {model!r} ({error})") from error
