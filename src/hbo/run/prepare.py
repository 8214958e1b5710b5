"""From a configuration to token sequences: read, normalise, hold out, encode; no model weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.assets.reasoning import COLUMN, Verifiers
from hbo.config import LoadedConfig
from hbo.config.trl import TrainerSettings, check_trl
from hbo.data.assemble import content_fingerprint
from hbo.data.formats import is_conversational, response_text
from hbo.data.holdout import halve, hold_out, rows_without, some_rows
from hbo.data.readers import Record
from hbo.data.rendering import Renderer
from hbo.data.subset import (
    EncodedSubset,
    SkippedRecords,
    Subset,
    check_alone,
    encode_subset,
    load_subset,
)
from hbo.difficulty.metrics import NEEDS_ALONE
from hbo.errors import DataError, HBOError
from hbo.evaluation.examples import HeldoutExample
from hbo.run.models import Progress, check_weights, load_tokenizer, locate_model
from hbo.run.sources import read_heldout, read_subset


@dataclass(frozen=True, eq=False)
class Part:
    """One subset, ready to be scored and trained on.

    Args:
        name: Its name in the configuration.
        rows: Good records of the training source, held-out ones included.
        train: Training examples.
        encoded: Their tokens; what truncation left without a response is in ``encoded.dropped``.
        validation: Examples that may guide a choice.
        test: Examples that are only reported on.
        skipped: (place, reason) of bad records that ``on_bad_record: skip`` left out.
        truncated: How many training examples were cut at the maximum length.
        overlap: Training rows left out because a held-out set has their prompt.
        heldout_dropped: Places of held-out examples that truncation left without a response.
    """

    name: str
    rows: int
    train: Subset
    encoded: EncodedSubset
    validation: tuple[HeldoutExample, ...]
    test: tuple[HeldoutExample, ...]
    skipped: tuple[tuple[str, str], ...]
    truncated: int
    overlap: int
    heldout_dropped: tuple[str, ...] = ()

    @property
    def dropped(self) -> list[str]:
        """Places of all examples that truncation left without a response."""
        train = (self.train.places[row] for row in self.encoded.dropped.tolist())
        return [*train, *self.heldout_dropped]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that is known before a model is loaded."""

    loaded: LoadedConfig
    settings: TrainerSettings
    model: str
    scoring_model: str
    tokenizer: Any
    parts: tuple[Part, ...]

    @property
    def encoded(self) -> dict[str, EncodedSubset]:
        """Training examples by subset."""
        return {part.name: part.encoded for part in self.parts}

    @property
    def fingerprint(self) -> str:
        """Hash of the training examples, subset by subset; difficulty groups play no part."""
        return content_fingerprint([part.encoded.encoded for part in self.parts])


@dataclass(frozen=True, eq=False)
class _Source:
    """A subset as read: training rows, held-out rows (``None``: none yet), and what was skipped."""

    rows: int
    train: Subset
    heldout: Subset
    bad: SkippedRecords


def prepare(loaded: LoadedConfig, progress: Progress | None = None) -> Prepared:
    """Read and check everything that a run needs, short of the model's weights.

    Raises:
        ConfigError: A setting, a path or a combination that cannot work.
        DataError: A record, a file or a subset that cannot be used.
        EnvironmentProblem: The hub, or the index of an asset, is out of reach.
    """
    settings = check_trl(loaded)
    model = locate_model(loaded, ("model",), progress)
    scoring_model = model
    if loaded.config.difficulty.scoring_model is not None:
        scoring_model = locate_model(loaded, ("difficulty", "scoring_model"), progress)
    check_weights(loaded, model)
    if scoring_model != model:
        check_weights(loaded, scoring_model, ("difficulty", "scoring_model"))
    sources = {name: _source(loaded, name) for name in loaded.config.datasets}
    tokenizer = load_tokenizer(loaded, model, settings)
    _require_chat_template(loaded, tokenizer, sources)
    renderer = _renderer(loaded, tokenizer, settings)
    uncut = dataclasses.replace(renderer, max_length=None)
    # Packing that splits long examples loses nothing of them; what is held out is never packed.
    train = uncut if _splits(settings.training) else renderer
    apart = [prompt for source in sources.values() for prompt in source.heldout.prompts()]
    verifiers = Verifiers(progress)
    parts = [
        _part(loaded, (train, renderer), name, source, apart, verifiers)
        for name, source in sources.items()
    ]
    return Prepared(loaded, settings, model, scoring_model, tokenizer, tuple(parts))


def _source(loaded: LoadedConfig, name: str) -> _Source:
    bad = SkippedRecords(loaded.config.on_bad_record)
    everything = _load(loaded, name, "data_files", read_subset(loaded, name, bad.on_bad), bad)
    heldout = read_heldout(loaded, name, bad.on_bad)
    if heldout is not None:
        key = "eval_files" if loaded.config.datasets[name].eval_files is not None else "eval_split"
        kept = _load(loaded, name, key, heldout, bad)
        return _Source(len(everything), everything, kept, bad)
    try:
        split = hold_out(everything.prompts(), loaded.config.evaluation.holdout)
    except DataError as error:
        raise _at(loaded, name, "data_files", error) from None
    kept = everything.take(np.sort(np.concatenate([split.validation, split.test])))
    return _Source(len(everything), everything.take(split.train), kept, bad)


def _load(
    loaded: LoadedConfig, name: str, key: str, records: list[Record], bad: SkippedRecords
) -> Subset:
    try:
        return load_subset(name, records, bad)
    except DataError as error:
        raise _at(loaded, name, key, error) from None


def _at(loaded: LoadedConfig, name: str, key: str, error: HBOError) -> HBOError:
    """An error about a whole subset, at the line of the configuration that names its source."""
    if error.where is not None:
        return error
    if key == "data_files" and loaded.config.datasets[name].data_files is None:
        key = "path"
    where = loaded.document.place(("datasets", name, key))
    return type(error)(f"datasets.{name}: {error.message}", where=where)


def _require_chat_template(
    loaded: LoadedConfig, tokenizer: Any, sources: dict[str, _Source]
) -> None:
    if tokenizer.chat_template is not None:
        return
    for name, source in sources.items():
        for subset in (source.train, source.heldout):
            for example, place in zip(subset.examples, subset.places, strict=True):
                if is_conversational(example):
                    raise loaded.error(
                        ("model",),
                        f"its tokenizer has no chat template, which the messages of the dataset"
                        f" {name!r} ({place}) need; use a chat model, set"
                        " training.chat_template_path, or give prompt and completion as plain text",
                    )


def _renderer(loaded: LoadedConfig, tokenizer: Any, settings: TrainerSettings) -> Renderer:
    training = settings.training
    # A value that the user left out is the renderer's own rule, whatever TRL's default is.
    given = loaded.config.training
    return Renderer(
        tokenizer,
        max_length=training.max_length,
        truncation_mode=training.truncation_mode,
        completion_only=given.get("completion_only_loss"),
        assistant_only=given.get("assistant_only_loss"),
        marked_template=_marked_template(tokenizer),
    )


def _marked_template(tokenizer: Any) -> str | None:
    """TRL's training template of a family it knows: it marks what the assistant says."""
    if tokenizer.chat_template is None:
        return None
    from trl.chat_template_utils import get_training_chat_template

    try:
        template: str | None = get_training_chat_template(tokenizer)
        return template
    except ValueError:
        return None


def _splits(training: Any) -> bool:
    """Whether packing cuts long examples into parts, in place of cutting off their ends."""
    return bool(training.packing) and training.packing_strategy != "bfd"


def _part(
    loaded: LoadedConfig,
    renderers: tuple[Renderer, Renderer],
    name: str,
    source: _Source,
    apart: Sequence[str],
    verifiers: Verifiers,
) -> Part:
    """One subset, with the renderers of its training and of its held-out examples."""
    renderer, of_heldout = renderers
    rows = rows_without(source.train.prompts(), apart)
    if not len(rows):
        raise DataError(
            f"datasets.{name}: every training prompt is also in a held-out set, so nothing is left"
            " to train on; give other eval_files",
            where=loaded.document.place(("datasets", name)),
        )
    train = source.train.take(rows)
    if loaded.config.train_share < 1.0:
        train = train.take(some_rows(train.prompts(), loaded.config.train_share))
    encoded = _encode(loaded, renderer, name, train, source.bad)
    if loaded.config.difficulty.metric in NEEDS_ALONE:
        check_alone(loaded.config.difficulty.metric, train, encoded)
    kept = _encode(loaded, of_heldout, name, source.heldout, source.bad)
    validation, test = _halves(loaded, name, source.heldout.take(kept.rows), kept, verifiers)
    return Part(
        name=name,
        rows=source.rows,
        train=train,
        encoded=encoded,
        validation=validation,
        test=test,
        skipped=tuple(source.bad.skipped),
        truncated=_count_cut(renderer, train, encoded),
        overlap=len(source.train) - len(rows),
        heldout_dropped=tuple(source.heldout.places[row] for row in kept.dropped.tolist()),
    )


def _encode(
    loaded: LoadedConfig, renderer: Renderer, name: str, subset: Subset, bad: SkippedRecords
) -> EncodedSubset:
    try:
        return encode_subset(subset, renderer, on_bad=bad.on_bad)
    except HBOError as error:
        raise _at(loaded, name, "data_files", error) from None


def _halves(
    loaded: LoadedConfig, name: str, subset: Subset, encoded: EncodedSubset, verifiers: Verifiers
) -> tuple[tuple[HeldoutExample, ...], tuple[HeldoutExample, ...]]:
    """Validation and test, from the held-out examples that have a response token left."""
    try:
        halves = halve(subset.prompts())
    except DataError as error:
        raise _at(loaded, name, "data_files", error) from None
    items = []
    for row, (tokens, example) in enumerate(zip(encoded.encoded, subset.examples, strict=True)):
        response = response_text(example) or ""
        verify = verifiers.of(subset.extras[row].get(COLUMN), response, subset.places[row])
        items.append(HeldoutExample(tokens, response, verify))
    validation, test = (tuple(items[row] for row in rows) for rows in halves)
    return validation, test


def _count_cut(renderer: Renderer, subset: Subset, encoded: EncodedSubset) -> int:
    """Examples that truncation shortened: only those at the limit can have lost anything."""
    if renderer.max_length is None:
        return 0
    whole = dataclasses.replace(renderer, max_length=None)
    cut = 0
    for tokens, row in zip(encoded.encoded, encoded.rows.tolist(), strict=True):
        if tokens.num_tokens >= renderer.max_length:
            full = whole.encode(subset.examples[row])
            cut += full is not None and full.num_tokens > tokens.num_tokens
    return cut
