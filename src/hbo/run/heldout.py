"""Held-out evaluation of a model on a prepared mixture, and its place in the run log."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from hbo.data.assemble import content_fingerprint
from hbo.data.formats import response_text
from hbo.evaluation.examples import HeldoutExample, find_options
from hbo.evaluation.heldout import HeldoutResult, evaluate_heldout, macro
from hbo.run.prepare import Part, Prepared
from hbo.run.ranks import all_ranks

Done = Callable[[int, int], None]


Half = Literal["validation", "test"]


def evaluate_half(
    model: Any, prepared: Prepared, half: Half, done: Done | None = None
) -> dict[str, HeldoutResult]:
    """Loss, perplexity and accuracy on one half of what is held out, by all ranks together.

    Args:
        model: On its device, with or without adapters; the same weights on all ranks.
        prepared: The mixture.
        half: ``validation``, which may guide a choice, or ``test``, which is only reported on.
        done: Told of (examples done, all).
    """
    settings = prepared.loaded.config.evaluation
    subsets = _half_of(prepared, half)
    return evaluate_heldout(
        model,
        prepared.tokenizer,
        subsets,
        options={part.name: find_options(all_examples(part)) for part in prepared.parts},
        tokens_per_batch=settings.tokens_per_batch,
        progress=done,
        ranks=all_ranks(),
    )


def _half_of(prepared: Prepared, half: Half) -> dict[str, tuple[HeldoutExample, ...]]:
    """The examples of one half that are measured, by subset."""
    most = prepared.loaded.config.evaluation.max_examples
    return {
        part.name: (part.test if half == "test" else part.validation)[:most]
        for part in prepared.parts
    }


def all_examples(part: Part) -> list[HeldoutExample]:
    """Training and held-out examples: together they show whether a question has fixed options."""
    train = [
        HeldoutExample(tokens, response_text(part.train.examples[row]) or "")
        for tokens, row in zip(part.encoded.encoded, part.encoded.rows.tolist(), strict=True)
    ]
    return [*train, *part.validation, *part.test]


def to_json(results: Mapping[str, HeldoutResult]) -> dict[str, Any]:
    """``subsets`` and ``macro`` as the run log and ``evaluation.json`` hold them."""
    together = macro(results)
    return {
        "subsets": {
            name: {
                "loss": result.loss,
                "perplexity": result.perplexity,
                "accuracy": result.accuracy,
                "grading": result.grading,
                "examples": result.examples,
            }
            for name, result in results.items()
        },
        "macro": {
            "loss": together.loss,
            "perplexity": together.perplexity,
            "accuracy": together.accuracy,
        },
    }


def examples_to_json(
    prepared: Prepared, step: int, halves: Mapping[Half, Mapping[str, HeldoutResult]]
) -> dict[str, Any]:
    """``heldout.json``: what was measured on each example, for those who compare runs.

    Args:
        prepared: What was measured on; a hash of it stands beside the numbers.
        step: Optimiser steps of the model that was measured.
        halves: Half -> subset -> result; examples are in the same order in every run of the same
            data, since what is held out depends neither on the seed nor on the policy.
    """
    examples = {half: _half_of(prepared, half) for half in halves}
    return {
        "schema": 1,
        "step": step,
        "splits": {
            half: {name: _row(result, examples[half][name]) for name, result in results.items()}
            for half, results in halves.items()
        },
    }


def _row(result: HeldoutResult, examples: Sequence[HeldoutExample]) -> dict[str, Any]:
    return {
        "fingerprint": content_fingerprint([[example.encoded for example in examples]]),
        "losses": result.losses.tolist(),
        "tokens": result.tokens.tolist(),
        "correct": None if result.correct is None else result.correct.astype(int).tolist(),
        "grading": result.grading,
    }
