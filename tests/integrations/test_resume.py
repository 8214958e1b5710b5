"""Every way to resume through the Trainer: the same weights, draws and losses as without a stop."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import Train, assert_same_weights, weights

EPOCHS: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2}  # of 12 steps each


@pytest.mark.parametrize(
    ("cut", "settings"),
    [
        (3, {"ignore_data_skip": True}),
        (3, {"restore_callback_states_from_checkpoint": True}),
        (12, EPOCHS),
        (15, EPOCHS | {"ignore_data_skip": True}),
        (12, EPOCHS | {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (8, {}),  # the last step: nothing is left to do
    ],
    ids=["no-skip", "callback-states", "epoch-end", "no-skip-2", "persistent", "last-step"],
)
def test_a_resume_is_no_resume(
    make: Train, tmp_path: Path, cut: int, settings: dict[str, Any]
) -> None:
    settings = {"save_strategy": "steps", "save_steps": cut, "logging_steps": 50} | settings
    whole = make(folder=tmp_path / "run", **settings)
    whole.train()
    for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{cut}":
            shutil.rmtree(checkpoint)
    resumed = make(folder=tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step
    assert_same_weights(weights(whole), weights(resumed))
    ours, theirs = resumed.balance_summary(), whole.balance_summary()
    for summary in (ours, theirs):
        del summary["balance_seconds"]
    assert ours == theirs
