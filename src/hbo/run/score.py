"""``hbo score``: difficulty scores of every training example, into the cache."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hbo.config import LoadedConfig
from hbo.mixture import FloatArray
from hbo.run.caches import scores_dir
from hbo.run.plan import plan_of
from hbo.run.prepare import Prepared, prepare
from hbo.run.progress import bar, say
from hbo.run.ranks import on_all_ranks
from hbo.run.scores import Notice, measured_scores


def score_run(loaded: LoadedConfig, notice: Notice = say) -> dict[str, Any]:
    """Score what the cache lacks, and describe the scores per subset.

    Under ``torchrun`` every rank calls this and measures its share; all get the same result.

    Args:
        loaded: The configuration.
        notice: Told of damaged caches, on rank 0.

    Returns:
        ``metric``, ``cache_dir``, ``seconds`` and ``subsets``: name -> number of examples,
        quantiles of their difficulty, and how many could not be measured.
    """
    start = time.perf_counter()
    prepared = on_all_ranks(lambda: _checked(loaded))
    with bar("scoring") as done:
        scores = measured_scores(prepared, done, notice)
    return {
        "metric": loaded.config.difficulty.metric,
        "cache_dir": str(scores_dir(loaded.config)),
        "seconds": time.perf_counter() - start,
        "subsets": {name: _describe(values) for name, values in scores.difficulty.items()},
    }


def _checked(loaded: LoadedConfig) -> Prepared:
    prepared = prepare(loaded, say)
    plan_of(prepared)
    return prepared


def _describe(values: FloatArray) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    quantiles = np.quantile(known, [0.0, 0.25, 0.5, 0.75, 1.0]) if len(known) else [np.nan] * 5
    names = ("min", "quarter", "median", "three_quarters", "max")
    return {
        "examples": len(values),
        "unknown": int(len(values) - len(known)),
        **{name: float(value) for name, value in zip(names, quantiles, strict=True)},
    }
