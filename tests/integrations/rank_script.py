"""Trains on the ranks that torchrun started and writes what each saw (run by test_ranks)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hbo.data.build import build_mixture
from hbo.integrations.observer import BatchObserver, Observed
from hbo.integrations.ranks import world
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.policies import make_policy
from tests.integrations.conftest import SUBSETS, sft_config
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer


def main(folder: str, policy: str, batch_size: int) -> None:
    """Eight steps of eight examples over all ranks."""
    built = build_mixture(
        {name: tiny_records(n, kind=name, layout="chat") for name, n in SUBSETS.items()},
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
    )
    trainer = BalancedSFTTrainer(
        tiny_model(),
        sft_config(
            Path(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=1
        ),
        mixture=built,
        policy=make_policy(policy, update_interval=2),
        processing_class=tiny_tokenizer(),
    )
    trained: list[list[int]] = []
    flush = BatchObserver.flush

    def remembering(self: BatchObserver) -> Observed:
        seen = flush(self)
        trained.append(np.asarray(seen.example_ids).tolist())
        return seen

    BatchObserver.flush = remembering  # type: ignore[method-assign]
    trainer.train()
    rank, _ = world()
    result: dict[str, Any] = trainer.balance_summary() | {"trained": trained}
    Path(folder, f"rank-{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
