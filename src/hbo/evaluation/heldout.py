"""Held-out loss, perplexity and accuracy of every subset, and their average over subsets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hbo.evaluation.examples import (
    Grading,
    HeldoutExample,
    Options,
    choose_grading,
    find_options,
)
from hbo.evaluation.passes import (
    BoolArray,
    PassSettings,
    greedy_matches,
    losses_of,
    option_log_likelihoods,
)
from hbo.evaluation.verified import AnswerReader, verified_answers
from hbo.measure.ranks import ONE_RANK, Ranks
from hbo.measure.response import Progress, response_token_counts
from hbo.measure.sharding import probed_together
from hbo.mixture import FloatArray, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class HeldoutResult:
    """What was measured on the held-out examples of one subset.

    Args:
        loss: Nats per response token, all tokens of the subset weighted alike; NaN without
            examples. Trainer's `eval_loss` is another number: each batch's mean over its tokens,
            averaged with the batch's examples as weights.
        perplexity: `exp(loss)`.
        accuracy: Share of examples answered right; None where answers cannot be graded.
        grading: How: "verifier", "options", "exact" or None.
        examples: How many, n.
        losses: (n,) mean nats per response token of each example.
        tokens: (n,) response tokens of each example.
        correct: (n,) answered right; None where answers cannot be graded.
    """

    loss: float
    perplexity: float
    accuracy: float | None
    grading: Grading | None
    examples: int
    losses: FloatArray
    tokens: IntArray
    correct: BoolArray | None


@dataclass(frozen=True)
class Macro:
    """Averages in which every subset counts the same.

    Args:
        loss: Mean of the subsets' losses.
        perplexity: `exp(loss)`, the geometric mean of the subsets' perplexities.
        accuracy: Mean over the subsets that can be graded; None where none can.
    """

    loss: float
    perplexity: float
    accuracy: float | None


def evaluate_heldout(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    subsets: Mapping[str, Sequence[HeldoutExample]],
    *,
    options: Mapping[str, Options | None] | None = None,
    tokens_per_batch: int = 4096,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ONE_RANK,
) -> dict[str, HeldoutResult]:
    """Measure a model on the held-out examples of each subset.

    A subset whose examples all have a verifier is graded by it: right where it accepts the answer
    of greedy decoding. Else a subset with 2 to 10 distinct short responses is graded by
    log-likelihood: right where the true response is the likeliest of the options (the first one of
    equals). Else, where nine in ten responses are short, an example is right where greedy decoding
    gives exactly its response. Else there is no accuracy. The pass that grades a subset gives its
    losses as well; a verifier also needs the answers that are not the known ones, token by token.

    The model is left as it was (mode, gradients, random state), and measured in eval mode.

    Several ranks share the batches, which do not depend on them, so neither do the numbers. The
    forward pass of a sharded model needs all ranks at once: there each measures everything.

    Args:
        model: Causal language model on its device; PEFT-wrapped or patched by TRL is fine.
        tokenizer: Its tokenizer, for the padding and end tokens.
        subsets: Name -> examples.
        options: Name -> what `find_options` gives for the training and held-out examples together;
            a subset that is not named gets the options of its held-out examples.
        tokens_per_batch: Padded tokens of one batch.
        dtype: Autocast to this type; None: the weights' own.
        progress: Told (examples done, examples in all subsets).
        ranks: Who measures; every rank of them calls this, with the same weights.

    Returns:
        Name -> result, in the order of `subsets`.
    """
    if probed_together(model):
        ranks = ONE_RANK
    settings = PassSettings(tokens_per_batch, _pad_id(tokenizer), dtype, ranks)
    reader = AnswerReader(tokenizer, _end_ids(model, tokenizer))
    total = sum(len(examples) for examples in subsets.values())
    results: dict[str, HeldoutResult] = {}
    done = 0
    for name, examples in subsets.items():
        known = options[name] if options and name in options else find_options(examples)
        results[name] = _evaluate_subset(
            model, examples, known, reader, settings, _shifted(progress, done, total)
        )
        done += len(examples)
    return results


def macro(results: Mapping[str, HeldoutResult]) -> Macro:
    """Average over subsets, each with the same weight; subsets without held-out examples left out.

    Args:
        results: What `evaluate_heldout` returned.
    """
    losses = [result.loss for result in results.values() if result.examples]
    graded = [result.accuracy for result in results.values() if result.accuracy is not None]
    loss = math.fsum(losses) / len(losses) if losses else math.nan
    accuracy = math.fsum(graded) / len(graded) if graded else None
    return Macro(loss, _exp(loss), accuracy)


def _evaluate_subset(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    options: Options | None,
    reader: AnswerReader,
    settings: PassSettings,
    progress: Progress | None,
) -> HeldoutResult:
    correct: BoolArray | None = None
    grading = choose_grading(examples, options)
    if grading == "options" and options is not None:
        scores = option_log_likelihoods(model, examples, options, settings, progress)
        losses, correct = _judge_options(model, examples, options, scores, settings)
    elif grading is not None:
        losses, correct = greedy_matches(model, examples, reader.end_ids, settings, progress)
        if grading == "verifier":
            correct = verified_answers(model, examples, correct, reader, settings)
    else:
        losses = losses_of(model, examples, settings, progress)
    tokens = response_token_counts([example.encoded for example in examples])
    loss = _token_weighted(losses, tokens)
    return HeldoutResult(
        loss=loss,
        perplexity=_exp(loss),
        accuracy=None if correct is None else float(correct.mean()),
        grading=grading,
        examples=len(examples),
        losses=losses,
        tokens=tokens,
        correct=correct,
    )


def _judge_options(
    model: nn.Module,
    examples: Sequence[HeldoutExample],
    options: Options,
    scores: FloatArray,
    settings: PassSettings,
) -> tuple[FloatArray, BoolArray]:
    """(n,) losses of the true responses and (n,) whether they are the likeliest."""
    texts = list(options)
    best = scores.argmax(axis=1)
    correct = np.array(
        [texts[choice] == example.response for choice, example in zip(best, examples, strict=True)]
    )
    losses = np.full(len(examples), np.nan)
    for row, example in enumerate(examples):
        ids = options.get(example.response)
        if ids == example.response_ids:
            losses[row] = -scores[row, texts.index(example.response)] / len(ids)
    # Cut by max_length, or an answer that is none of the options: measured as it stands.
    others = [row for row, example in enumerate(examples) if not _is_option(example, options)]
    losses[others] = losses_of(model, [examples[row] for row in others], settings)
    return losses, correct


def _is_option(example: HeldoutExample, options: Options) -> bool:
    return options.get(example.response) == example.response_ids


def _token_weighted(losses: FloatArray, tokens: IntArray) -> float:
    counted = tokens > 0
    total = float(tokens[counted].sum())
    return float(np.dot(losses[counted], tokens[counted]) / total) if total else math.nan


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def _end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens at which `generate` stops: the tokenizer's and the model's own."""
    config = getattr(model, "generation_config", None)
    of_model = getattr(config, "eos_token_id", None)
    found = [tokenizer.eos_token_id, *(of_model if isinstance(of_model, list) else [of_model])]
    return frozenset(token for token in found if isinstance(token, int))


def _shifted(progress: Progress | None, offset: int, total: int) -> Progress | None:
    return None if progress is None else lambda done, _total: progress(offset + done, total)
