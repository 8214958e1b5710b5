"""A tiny mixture on a tiny model: real trainers, a second a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import SFTConfig

from hbo.data.build import BuiltMixture, build_mixture
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.policies import make_policy
from hbo.runlog import RunLog
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer

SUBSETS = {"copy": 60, "add": 24, "noise": 9}


@pytest.fixture(scope="session")
def built() -> BuiltMixture:
    """Three subsets, 93 examples, four groups scored by IFD under the tiny model."""
    return build_mixture(
        {name: tiny_records(n, kind=name, layout="chat") for name, n in SUBSETS.items()},
        difficulty="ifd",
        groups=4,
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
    )


def sft_config(folder: Path, **settings: Any) -> SFTConfig:
    """Eight steps of eight examples on the CPU, quiet."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 5,
    }
    return SFTConfig(**(defaults | settings))


Train = Callable[..., BalancedSFTTrainer]
NORMS = {"global_reward": "gradient-norm", "update_at_start": False}
"""Fields of ``hbo`` in these tests: a reward of each kind, first paid for what training showed."""


@pytest.fixture
def make(built: BuiltMixture, tmp_path: Path) -> Train:
    """Make a trainer; ``policy_fields`` and ``model`` as keywords, the rest goes to SFTConfig."""
    count = iter(range(100))

    def make(
        policy: str = "hbo",
        *,
        model: Any = None,
        policy_fields: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        folder: Path | None = None,
        **settings: Any,
    ) -> BalancedSFTTrainer:
        folder = folder or tmp_path / f"run-{next(count)}"
        fields = (NORMS if policy == "hbo" else {}) | (policy_fields or {})
        return BalancedSFTTrainer(
            tiny_model(dropout=0.1) if model is None else model,
            sft_config(folder, **settings),
            mixture=built,
            policy=make_policy(policy, update_interval=2, **fields),
            processing_class=tiny_tokenizer(),
            run_log=RunLog(folder / "run.jsonl"),
            **(trainer or {}),
        )

    return make


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of the trained weights."""
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
