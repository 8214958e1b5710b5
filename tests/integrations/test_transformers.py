"""BalancedTrainer, and ``attach`` to trainers made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import SFTTrainer

from hbo.data.build import BuiltMixture
from hbo.errors import ConfigError
from hbo.integrations.transformers import BalancedTrainer, attach
from hbo.policies import make_policy
from tests.integrations.conftest import NORMS, Train, assert_same_weights, sft_config, weights
from tests.support.tiny import tiny_model, tiny_tokenizer


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 6,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "seed": 5,
        }
        | settings
    )


def policy() -> Any:
    return make_policy("hbo", NORMS, update_interval=2)


def test_the_plain_trainer_sees_the_losses_that_trl_sees(
    make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    plain = BalancedTrainer(
        tiny_model(),
        arguments(tmp_path, learning_rate=0.0),
        mixture=built,
        policy=policy(),
        processing_class=tiny_tokenizer(),
    )
    plain.train()
    trl = make(
        model=tiny_model(),
        max_steps=6,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        learning_rate=0.0,
    )
    trl.train()
    ours, theirs = plain.balance_summary(), trl.balance_summary()
    for name, subset in ours["subsets"].items():
        assert np.isclose(subset["train_loss"], theirs["subsets"][name]["train_loss"], rtol=1e-5)
    assert ours["draws"] == theirs["draws"] == 48
    assert any("mixture/copy/loss" in entry for entry in plain.state.log_history)


def test_a_loss_function_of_the_users_own_is_observed_too(
    built: BuiltMixture, tmp_path: Path
) -> None:
    import torch

    def loss_function(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits = outputs.logits[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())

    trainer = BalancedTrainer(
        tiny_model(),
        arguments(tmp_path),
        mixture=built,
        policy="prop",
        processing_class=tiny_tokenizer(),
        compute_loss_func=loss_function,
    )
    trainer.train()
    assert trainer.balance_summary()["tokens"] > 0


@pytest.mark.parametrize("kind", ["sft", "plain"])
def test_attach_equals_the_class_of_our_own(
    kind: str, make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    if kind == "sft":
        ours: Any = make(model=tiny_model(), max_steps=6)
        ours.train()
        theirs: Any = SFTTrainer(
            tiny_model(),
            sft_config(tmp_path / "other", max_steps=6),
            train_dataset=built.dataset,
            processing_class=tiny_tokenizer(),
        )
    else:
        ours = BalancedTrainer(
            tiny_model(),
            arguments(tmp_path / "ours"),
            mixture=built,
            policy=policy(),
            processing_class=tiny_tokenizer(),
        )
        ours.train()
        theirs = Trainer(
            tiny_model(),
            arguments(tmp_path / "theirs"),
            train_dataset=built.dataset.select_columns(["input_ids", "labels"]),
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        )
    attached = attach(theirs, built, policy())
    assert attached is theirs and isinstance(theirs, SFTTrainer if kind == "sft" else Trainer)
    theirs.train()
    assert_same_weights(weights(ours), weights(theirs))
    assert ours.balance_summary()["probabilities"] == theirs.balance_summary()["probabilities"]


def test_attach_keeps_overrides_and_happens_once(built: BuiltMixture, tmp_path: Path) -> None:
    class Counting(Trainer):
        calls = 0

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            type(self).calls += 1
            return super().compute_loss(*args, **kwargs)

    trainer = attach(
        Counting(
            tiny_model(),
            arguments(tmp_path),
            train_dataset=built.dataset,
            data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
        ),
        built,
        "uni",
    )
    trainer.train()
    assert type(trainer).calls == 6
    with pytest.raises(ConfigError, match="balanced already"):
        attach(trainer, built)


def test_training_twice_starts_the_stream_anew(built: BuiltMixture, tmp_path: Path) -> None:
    trainer = BalancedTrainer(
        tiny_model(),
        arguments(tmp_path),
        mixture=built,
        policy=policy(),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    first = trainer.balance_summary()["draws"]
    trainer.train()
    assert trainer.balance_summary()["draws"] == first == 48
