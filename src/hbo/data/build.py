"""From datasets to a mixture in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hbo.data.assemble import BuiltMixture as BuiltMixture
from hbo.data.assemble import assemble as assemble
from hbo.data.assemble import check_plan
from hbo.data.readers import Record
from hbo.data.rendering import Renderer
from hbo.data.scores import Notice, Progress, difficulty_of, measure_subsets, needs_model
from hbo.data.scores import column_scores as column_scores
from hbo.data.scores import split_statistics as split_statistics
from hbo.data.subset import (
    EncodedSubset,
    SkippedRecords,
    Subset,
    check_alone,
    encode_subset,
    load_subset,
)
from hbo.difficulty.metrics import NEEDS_ALONE
from hbo.errors import ConfigError, DataError
from hbo.measure.examples import Encoded
from hbo.measure.ranks import ONE_RANK, Ranks
from hbo.sampling.limits import Limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def build_mixture(
    subsets: Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    difficulty: str = "ifd",
    groups: int = 4,
    model: PreTrainedModel | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    scoring_model: PreTrainedModel | str | None = None,
    weights: Mapping[str, float] | None = None,
    limits: Limits | None = None,
    max_length: int | None = 1024,
    renderer: Renderer | None = None,
    on_bad_record: str = "error",
    cache_dir: str | Path | None = None,
    tokens_per_batch: int = 4096,
    progress: Progress | None = None,
    notice: Notice | None = None,
    ranks: Ranks = ONE_RANK,
    heldout: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
) -> BuiltMixture:
    """From datasets to a mixture in one call: normalise, encode, score, cut into groups, lay out.

    The same pass that scores difficulty gives the loss under the untouched ``model``, from which
    relative perplexity (Eq. 8 of arXiv 2505.12300) is computed; with another ``scoring_model`` that
    takes a pass of its own.

    Args:
        subsets: By name, a ``datasets.Dataset`` or a list of dicts in any format of
            ``hbo.data.formats``.
        difficulty: A name in ``METRICS``, or ``column:NAME`` for numbers that the records hold.
        groups: G, difficulty groups of each subset.
        model: The model to be trained, or its path; not needed for ``length`` and ``column:NAME``.
        tokenizer: Its tokenizer; ``None`` loads the one that belongs to ``model``.
        scoring_model: Measures difficulty in place of ``model``; it must share its tokenizer.
        weights: Share of draws of every subset; ``None``: the policy's prior decides by size.
        limits: Floors and caps; ``None``: none.
        max_length: Tokens at which an example is cut, as ``SFTConfig.max_length``.
        renderer: Turns records into tokens and labels; ``None``: a ``Renderer`` of ``tokenizer``
            and ``max_length`` with its own defaults.
        on_bad_record: ``error``, or ``skip`` (with a notice).
        cache_dir: Folder in which scores are kept; ``None``: nowhere.
        tokens_per_batch: Padded tokens of a scoring batch.
        progress: Called with (examples done, in all) while scoring.
        notice: Called with a line on skipped or dropped records and damaged caches.
        ranks: Who shares the scoring (``hbo.run.ranks.all_ranks()`` in a process group); every
            rank of them calls this with the same subsets. By default each scores all for itself.
        heldout: Validation examples of some subsets or of all, in the same formats, for policies
            that look at held-out data (``multidds``, ``multiuat``, ``msft``, ...). Never trained
            on; what is reported as a result should be measured on other examples again.

    Raises:
        ConfigError: A setting is unknown or out of range, or a model or tokenizer is missing.
        DataError: A record is unusable, or a subset is empty, or a stream without an end.

    Example:
        >>> from transformers import AutoTokenizer  # doctest: +SKIP
        >>> build_mixture({"arabic": ds_ar, "german": ds_de}, model=model)  # doctest: +SKIP
    """
    if needs_model(difficulty) and scoring_model is None and model is None:
        raise ConfigError(
            f"difficulty {difficulty!r} is measured on a model: pass model= or scoring_model=, "
            "or use 'length' or 'column:NAME'"
        )
    check_plan(tuple(subsets), weights, limits)  # before hours of scoring, not after
    _check_heldout(subsets, heldout)
    notice = notice or (lambda line: None)
    tokenizer = tokenizer or _tokenizer_of(model)
    renderer = renderer or Renderer(tokenizer, max_length=max_length)
    loaded, encoded = _encoded(subsets, renderer, SkippedRecords(on_bad_record), notice)
    validation = _heldout(heldout or {}, loaded, renderer, SkippedRecords(on_bad_record), notice)
    alone = difficulty in NEEDS_ALONE
    for name in encoded if alone else ():
        check_alone(difficulty, loaded[name], encoded[name])
    measure = partial(
        measure_subsets,
        encoded=encoded,
        pad_id=tokenizer.pad_token_id or 0,
        cache_dir=cache_dir,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
        notice=notice,
        ranks=ranks,
    )
    first = None if model is None else measure(model, alone=alone and scoring_model is None)
    scored = first
    if scoring_model is not None and needs_model(difficulty):
        scored = measure(scoring_model, alone=alone)
    return assemble(
        encoded,
        difficulty_of(difficulty, loaded, encoded, scored),
        groups=groups,
        first_losses=None if first is None else {name: s.loss for name, s in first.items()},
        weights=weights,
        limits=limits,
        heldout=validation,
    )


def _heldout(
    heldout: Mapping[str, Iterable[Mapping[str, Any]]],
    trained: Mapping[str, Subset],
    renderer: Renderer,
    bad: SkippedRecords,
    notice: Notice,
) -> dict[str, tuple[Encoded, ...]]:
    """Validation examples by subset, with a notice where their prompts are trained on too."""
    loaded, encoded = _encoded(heldout, renderer, bad, notice, kind="held-out set")
    for name, subset in loaded.items():
        shared = set(subset.prompts()) & set(trained[name].prompts())
        if shared:
            notice(
                f"held-out set {name!r}: {len(shared)} of its prompts are trained on as well; what"
                " is measured on them is no validation"
            )
    return {name: subset.encoded for name, subset in encoded.items()}


def _check_heldout(subsets: Mapping[str, Iterable[Mapping[str, Any]]], heldout: Any) -> None:
    if heldout is not None and not isinstance(heldout, Mapping):
        raise ConfigError("heldout must be a mapping from subset to its validation examples")
    unknown = sorted(set(heldout or {}) - set(subsets))
    if unknown:
        raise ConfigError(
            f"heldout has {unknown[0]!r}, which is no subset; the subsets are {', '.join(subsets)}"
        )


def _encoded(
    subsets: Mapping[str, Iterable[Mapping[str, Any]]],
    renderer: Renderer,
    bad: SkippedRecords,
    notice: Notice,
    kind: str = "subset",
) -> tuple[dict[str, Subset], dict[str, EncodedSubset]]:
    """Canonical and encoded examples, with a notice of what was left out."""
    loaded = {
        name: load_subset(
            name if kind == "subset" else f"heldout of {name}", _records(name, rows, kind), bad
        )
        for name, rows in subsets.items()
    }
    encoded = {
        name: encode_subset(subset, renderer, on_bad=bad.on_bad) for name, subset in loaded.items()
    }
    for place, message in bad.skipped:
        notice(f"{place}: skipped: {message}")
    for name, subset in encoded.items():
        if len(subset.dropped):
            notice(
                f"{kind} {name!r}: {len(subset.dropped)} examples dropped, "
                "as truncation left no response"
            )
    return loaded, encoded


def _records(name: str, rows: Iterable[Mapping[str, Any]], kind: str) -> Iterator[Record]:
    if isinstance(rows, Mapping):  # a DatasetDict, whose iteration gives the names of its splits
        raise DataError(
            f"{kind} {name!r} holds splits ({', '.join(map(str, rows))}): pass one of them"
        )
    if any(kind.__name__ == "IterableDataset" for kind in type(rows).__mro__):
        raise DataError(
            f"{kind} {name!r} is a stream (IterableDataset): difficulty groups and exact draws need"
            " every example by its number; use a map-style dataset, such as load_dataset without"
            " streaming, which maps Arrow files into memory without loading them"
        )
    for number, row in enumerate(rows):
        where = f"{kind} {name!r}: row {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"expected a dict, got {type(row).__name__}", where=where)
        yield Record(None, dict(row), where)


def _tokenizer_of(model: PreTrainedModel | str | None) -> PreTrainedTokenizerBase:
    path = model if isinstance(model, str) or model is None else model.name_or_path
    if not path:
        raise ConfigError("the model does not say which tokenizer belongs to it: pass tokenizer=")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no tokenizer at {path!r}: pass tokenizer= ({error})") from error
