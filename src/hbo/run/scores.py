"""Difficulty scores of a prepared mixture, from the cache or from the model; then the mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from hbo.data.assemble import BuiltMixture, assemble
from hbo.data.scores import column_scores, split_statistics
from hbo.data.subset import COLUMN
from hbo.difficulty.metrics import NEEDS_ALONE, ResponseStatistics, difficulty_scores
from hbo.errors import EnvironmentProblem
from hbo.measure.examples import Encoded
from hbo.measure.ranks import ONE_RANK, Ranks
from hbo.mixture import FloatArray
from hbo.policies import make_policy
from hbo.run.caches import scores_dir
from hbo.run.models import load_model
from hbo.run.prepare import Prepared
from hbo.run.ranks import all_ranks
from hbo.sampling.limits import Limits
from hbo.signals import FIRST_LOSS, PERPLEXITY_RATIO

OWN = ("model",)
SCORING = ("difficulty", "scoring_model")

Result = TypeVar("Result")
Done = Callable[[int, int], None]
Notice = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Scores:
    """What scoring found, per subset.

    Args:
        difficulty: (n_k,) scores, higher is harder.
        first_losses: (n_k,) losses under the untouched model; ``None`` where not measured.
    """

    difficulty: Mapping[str, FloatArray]
    first_losses: Mapping[str, FloatArray] | None


class _NotScored(Exception):
    """The cache lacks something, and nobody may load a model."""


def is_measured(metric: str) -> bool:
    """Whether a metric needs a model at all."""
    return metric != "length" and not metric.startswith(COLUMN)


def cached_scores(prepared: Prepared) -> Scores | None:
    """Scores without loading a model: the metric needs none, or the cache has them all."""
    config = prepared.loaded.config
    if is_measured(config.difficulty.metric) and not scores_dir(config).is_dir():
        return None  # a plan leaves nothing behind, not even the cache's folder

    def refuse(_path: tuple[str, ...]) -> NoReturn:
        raise _NotScored

    try:
        return _scores(prepared, refuse, with_first=False)
    except (_NotScored, EnvironmentProblem, OSError):
        return None


def measured_scores(
    prepared: Prepared,
    done: Done | None = None,
    notice: Notice | None = None,
    load_own: Callable[[], Any] | None = None,
) -> Scores:
    """Scores and first losses, measuring what the cache lacks, on all ranks of the run together.

    The first loss, under the model that will be trained, comes from the scoring pass itself where
    the scoring model is that model; another scoring model costs a pass more.

    Args:
        prepared: The mixture's tokens.
        done: Told of examples done on all ranks, and of all.
        notice: Told of damaged caches, on rank 0.
        load_own: Loads the model to be trained, where the caller will go on using it; a rank that
            has nothing to measure does not call it.

    Returns:
        The same on all ranks, whatever their caches held; every rank calls this.

    Raises:
        EnvironmentProblem: Something failed on this rank, or on another.
    """

    def load(path: tuple[str, ...]) -> Any:
        if path == OWN and load_own is not None:
            return load_own()
        name = prepared.model if path == OWN else prepared.scoring_model
        return load_model(prepared.loaded, name, prepared.settings, path)

    return _scores(
        prepared,
        load,
        with_first=wants_first_losses(prepared),
        done=done,
        notice=notice,
        ranks=all_ranks(),
    )


def wants_first_losses(prepared: Prepared) -> bool:
    """Whether somebody reads the untouched model's losses, or scoring gives them anyway."""
    config = prepared.loaded.config
    needs = make_policy(config.balance.policy, config.balance.fields).needs
    free = is_measured(config.difficulty.metric) and prepared.scoring_model == prepared.model
    return free or bool(needs & {FIRST_LOSS, PERPLEXITY_RATIO})


def _scores(
    prepared: Prepared,
    load: Callable[[tuple[str, ...]], Any],
    *,
    with_first: bool,
    done: Done | None = None,
    notice: Notice | None = None,
    ranks: Ranks = ONE_RANK,
) -> Scores:
    config = prepared.loaded.config
    metric = config.difficulty.metric
    same = prepared.scoring_model == prepared.model

    def measure(path: tuple[str, ...], alone: bool) -> dict[str, ResponseStatistics]:
        return _statistics(prepared, path, alone, lambda: load(path), done, notice, ranks)

    alone = metric in NEEDS_ALONE
    first = measure(OWN, alone and same) if with_first else None
    first_losses = None if first is None else {name: part.loss for name, part in first.items()}
    if metric.startswith(COLUMN):
        trains = {part.name: part.train for part in prepared.parts}
        return Scores(column_scores(metric, trains, prepared.encoded), first_losses)
    if not is_measured(metric):
        found = {p.name: _without_model(p.encoded.encoded) for p in prepared.parts}
    elif first is not None and same:
        found = first
    else:
        found = measure(OWN if same else SCORING, alone)
    scores = {name: difficulty_scores(metric, part) for name, part in found.items()}
    return Scores(scores, first_losses)


def _without_model(encoded: tuple[Encoded, ...]) -> ResponseStatistics:
    tokens = np.array([example.response_tokens for example in encoded], dtype=np.float64)
    return ResponseStatistics(np.full(len(tokens), np.nan), None, tokens)


def _statistics(
    prepared: Prepared,
    path: tuple[str, ...],
    alone: bool,
    load: Callable[[], Any],
    done: Done | None,
    notice: Notice | None,
    ranks: Ranks,
) -> dict[str, ResponseStatistics]:
    from hbo.measure.scoring import score_examples

    config = prepared.loaded.config
    name = prepared.model if path == OWN else prepared.scoring_model
    folder = _folder(prepared, name)
    model = None
    if folder is None:
        # A hub model that was never fetched has no scores either; fetching it gives it a folder.
        model = load()
        folder = _folder(prepared, name)
    key = _key(prepared, folder) if folder is not None else ""
    encoded = [example for part in prepared.parts for example in part.encoded.encoded]
    statistics = score_examples(
        load if model is None else model,
        encoded,
        alone=alone,
        cache_dir=scores_dir(config) if folder is not None else None,
        key=key,
        tokens_per_batch=config.difficulty.tokens_per_batch,
        pad_id=prepared.tokenizer.pad_token_id or 0,
        progress=done,
        notice=notice,
        ranks=ranks,
    )
    return split_statistics(statistics, prepared.encoded)


def _folder(prepared: Prepared, name: str) -> Path | None:
    """The folder that holds a model's weights: a local one, or the hub client's."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).is_dir():
        return Path(name)
    found = try_to_load_from_cache(
        name, "config.json", revision=prepared.settings.tuning.model_revision
    )
    folder = Path(found).parent if isinstance(found, str) else None
    weights = folder is not None and any(folder.glob("*.safetensors"))
    return folder if weights else None


def _key(prepared: Prepared, folder: Path) -> str:
    from hbo.measure.fingerprints import model_fingerprint, scoring_fingerprint

    tuning = prepared.settings.tuning
    return scoring_fingerprint(
        model_fingerprint(folder),
        dtype=str(tuning.dtype),
        quantised=[tuning.load_in_8bit, tuning.load_in_4bit],
    )


def build(prepared: Prepared, scores: Scores) -> BuiltMixture:
    """The mixture that a trainer draws from, its rows packed where the configuration says so."""
    config = prepared.loaded.config
    given = [section.weight for section in config.datasets.values()]
    weights = None
    if config.weights is not None:
        weights = {name: float(w or 0.0) for name, w in zip(config.datasets, given, strict=True)}
    built = assemble(
        prepared.encoded,
        scores.difficulty,
        groups=config.difficulty.groups,
        first_losses=scores.first_losses,
        weights=weights,
        limits=limits_of(prepared),
        heldout={p.name: [example.encoded for example in p.validation] for p in prepared.parts},
        drop_easiest=config.difficulty.drop_easiest,
    )
    return packed(prepared, built)


def packed(prepared: Prepared, built: BuiltMixture) -> BuiltMixture:
    """A mixture as the trainer's settings want its rows."""
    if not prepared.settings.training.packing:
        return built
    from hbo.integrations.trl import pack_rows  # which takes seconds to import

    return pack_rows(built, prepared.settings.training)


def limits_of(prepared: Prepared) -> Limits:
    """Floors and caps of the configuration, in the order of the subsets."""
    sections = prepared.loaded.config.datasets.values()
    return Limits(
        np.array([section.min_share for section in sections]),
        np.array([section.max_share for section in sections]),
        np.array(
            [np.inf if section.max_passes is None else section.max_passes for section in sections]
        ),
    )
