"""``summary.json``: what a run did and what it bought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA = 1


def make_summary(
    *,
    balance: Mapping[str, Any],
    policy: str,
    data_fingerprint: str,
    seed: int,
    steps: int,
    wall_seconds: float,
    training_seconds: float,
    scoring_seconds: float,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the trainer's part and the held-out part together.

    Args:
        balance: ``trainer.balance_summary()``.
        policy: Its name.
        data_fingerprint: ``Prepared.fingerprint``.
        seed: Of the run.
        steps: Optimiser steps done.
        wall_seconds: Of the whole run, all its parts together where it was resumed.
        training_seconds: Of the training loop, evaluations left out.
        scoring_seconds: Of difficulty scoring, which a trainer without us would not spend.
        before: Held-out evaluation of the untouched model; ``None`` where it was not made.
        after: Held-out evaluation of the trained model.
    """
    subsets = {
        name: {
            **_training(row),
            **_heldout(name, before, "before"),
            **_heldout(name, after, "after"),
        }
        for name, row in balance["subsets"].items()
    }
    return {
        "schema": SCHEMA,
        "policy": policy,
        "seed": seed,
        "steps": steps,
        "draws": balance["draws"],
        "tokens": balance["tokens"],
        "wall_seconds": wall_seconds,
        "training_seconds": training_seconds,
        "balance_seconds": balance["balance_seconds"] + scoring_seconds,
        "stream_sha256": balance["stream_sha256"],
        "mixture_fingerprint": balance["mixture_fingerprint"],
        "data_fingerprint": data_fingerprint,
        "probabilities": balance["probabilities"],
        "subsets": subsets,
        "macro_holdout_loss_before": _macro(before, "loss"),
        "macro_holdout_loss_after": _macro(after, "loss"),
        "macro_holdout_accuracy_before": _macro(before, "accuracy"),
        "macro_holdout_accuracy_after": _macro(after, "accuracy"),
    }


def _training(row: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("examples", "draws", "passes", "never_seen", "tokens", "train_loss")
    return {key: row[key] for key in keys if key in row}


def _heldout(name: str, evaluation: Mapping[str, Any] | None, when: str) -> dict[str, Any]:
    found = {} if evaluation is None else evaluation["subsets"].get(name, {})
    return {f"holdout_{key}_{when}": found.get(key) for key in ("loss", "accuracy")}


def _macro(evaluation: Mapping[str, Any] | None, key: str) -> float | None:
    return None if evaluation is None else evaluation["macro"].get(key)
