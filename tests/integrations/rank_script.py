"""Trains on the ranks that torchrun started and writes what each saw (run by test_ranks)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hbo.data.build import build_mixture
from hbo.integrations import engine
from hbo.integrations.observer import Observed
from hbo.integrations.ranks import add_over_ranks, world
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.mixture import FloatArray
from hbo.policies import make_policy
from tests.integrations.conftest import SUBSETS, sft_config
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer


def trainer(folder: Path, policy: str, batch_size: int) -> BalancedSFTTrainer:
    """Eight steps of eight examples over all ranks, a checkpoint at the fourth."""
    built = build_mixture(
        {name: tiny_records(n, kind=name, layout="chat") for name, n in SUBSETS.items()},
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
    )
    config = sft_config(
        folder,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=1,
        save_strategy="steps",
        save_steps=4,
    )
    return BalancedSFTTrainer(
        tiny_model(),
        config,
        mixture=built,
        policy=make_policy(policy, update_interval=2),
        processing_class=tiny_tokenizer(),
    )


def train(made: BalancedSFTTrainer, resume: bool = False) -> dict[str, Any]:
    """The summary, and the examples that this rank trained on in each step."""
    trained: list[list[int]] = []
    flush = made.engine.observer.flush

    def remembering() -> Observed:
        seen = flush()
        trained.append(np.asarray(seen.example_ids).tolist())
        return seen

    made.engine.observer.flush = remembering  # type: ignore[method-assign]
    made.train(resume_from_checkpoint=resume or None)
    return made.balance_summary() | {"trained": trained}


def go_wrong() -> None:
    """Make the second rank receive other sums than were sent, as broken memory would."""

    def wrong(array: FloatArray) -> FloatArray:
        total = add_over_ranks(array)
        return total * 1.5 if world()[0] == 1 else total

    engine.add_over_ranks = wrong  # type: ignore[attr-defined]


def main(folder: str, policy: str, batch_size: int, tamper: bool) -> None:
    if tamper:
        go_wrong()
    result = train(trainer(Path(folder), policy, batch_size))
    Path(folder, f"rank-{world()[0]}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "tamper" in sys.argv[4:])
