"""Every way to resume through the Trainer: the same weights, draws and losses as without a stop."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from trl import SFTTrainer

from hbo.data.build import BuiltMixture
from hbo.errors import StateError
from hbo.integrations.options import BalanceOptions
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.runlog import read_log
from tests.integrations.conftest import Train, assert_same_weights, sft_config, weights
from tests.support.tiny import tiny_model, tiny_tokenizer

EPOCHS: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 2}  # of 12 steps each
WORKERS: dict[str, Any] = {"dataloader_num_workers": 2}
STAYING: dict[str, Any] = WORKERS | {"dataloader_persistent_workers": True}


def keep_only(folder: Path, step: int) -> None:
    """Remove all checkpoints but one."""
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)


def assert_same_run(one: BalancedSFTTrainer, other: BalancedSFTTrainer) -> None:
    """The same weights and the same summary, but for the time."""
    assert one.state.global_step == other.state.global_step
    assert_same_weights(weights(one), weights(other))
    ours, theirs = one.balance_summary(), other.balance_summary()
    for summary in (ours, theirs):
        del summary["balance_seconds"]
    assert ours == theirs


def damage(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("cut", "settings"),
    [
        (3, {"ignore_data_skip": True}),
        (3, {"restore_callback_states_from_checkpoint": True}),
        (12, EPOCHS),
        (15, EPOCHS | {"ignore_data_skip": True}),
        (11, EPOCHS | WORKERS),
        (5, EPOCHS | STAYING),
        (12, EPOCHS | STAYING),
        (8, {}),  # the last step: nothing is left to do
    ],
    ids=[
        *("no-skip", "callback-states", "epoch-end", "no-skip-2", "workers"),
        *("staying-workers", "staying-workers-epoch-end", "last-step"),
    ],
)
def test_a_resume_is_no_resume(
    make: Train, tmp_path: Path, cut: int, settings: dict[str, Any]
) -> None:
    settings = {"save_strategy": "steps", "save_steps": cut, "logging_steps": 50} | settings
    whole = make(folder=tmp_path / "run", **settings)
    whole.train()
    keep_only(tmp_path / "run", cut)
    resumed = make(folder=tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_workers_that_stay_change_nothing(make: Train) -> None:
    none = make(**EPOCHS)
    none.train()
    staying = make(**EPOCHS, **STAYING)  # made here: a trainer seeds the random state
    staying.train()
    assert_same_run(none, staying)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(make: Train, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = make(folder=tmp_path / "run", **settings)
    whole.train()
    damage(tmp_path / "run" / "checkpoint-8")
    damage(tmp_path / "run" / "checkpoint-6")
    resumed = make(folder=tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    told = [
        event["text"]
        for event in read_log(tmp_path / "run" / "run.jsonl")
        if event.get("code") == "damaged-checkpoint"
    ]
    assert told == [
        f"checkpoint-{step} is damaged (optimizer.pt is cut off) and passed over" for step in (8, 6)
    ]


def test_a_damaged_checkpoint_that_is_named_is_refused_and_so_are_only_damaged_ones(
    make: Train, tmp_path: Path
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 8}
    make(folder=tmp_path / "run", **settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-8"
    damage(checkpoint)
    with pytest.raises(StateError, match=r"damaged \(optimizer.pt is cut off\)"):
        make(folder=tmp_path / "run").train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(StateError, match="no checkpoint is whole"):
        make(folder=tmp_path / "run").train(resume_from_checkpoint=True)


def test_a_damaged_later_checkpoint_does_not_push_out_the_whole_ones(
    make: Train, tmp_path: Path
) -> None:
    make(folder=tmp_path / "run", save_strategy="steps", save_steps=3).train()
    damage(tmp_path / "run" / "checkpoint-8")
    again = make(folder=tmp_path / "run", save_strategy="steps", save_steps=7, save_total_limit=1)
    again.args.max_steps = 7
    again.train(resume_from_checkpoint=True)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-7"]


def test_the_best_model_is_kept_beside_the_newest_and_loaded(
    make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so that the best one is the first
    }
    rows = {"eval_dataset": built.dataset.select(range(8))}
    whole = make(folder=tmp_path / "run", trainer=rows, **settings)
    whole.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    resumed = make(folder=tmp_path / "run", trainer=rows, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert whole.state.best_global_step == resumed.state.best_global_step == 2
    assert_same_run(whole, resumed)


def plain_checkpoint(built: BuiltMixture, folder: Path) -> None:
    """What SFTTrainer writes at step 2, with nothing of ours."""
    SFTTrainer(
        tiny_model(dropout=0.1),
        sft_config(folder, max_steps=2, save_strategy="steps", save_steps=2),
        train_dataset=built.dataset.select_columns(["input_ids", "labels"]),
        processing_class=tiny_tokenizer(),
    ).train()


def test_a_training_without_balancing_goes_on_with_it_and_resumes_exactly(
    make: Train, built: BuiltMixture, tmp_path: Path
) -> None:
    plain_checkpoint(built, tmp_path / "run")
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    begun = make(folder=tmp_path / "run", **settings)
    begun.train(resume_from_checkpoint=True)
    events = read_log(tmp_path / "run" / "run.jsonl")
    assert [event["step"] for event in events if event.get("code") == "balancing-begins"] == [2]
    assert begun.balance_summary()["draws"] == (8 - 2) * 8
    keep_only(tmp_path / "run", 6)
    resumed = make(folder=tmp_path / "run", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(begun, resumed)


def test_another_policy_begins_anew_only_if_it_is_asked_to(make: Train, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    make(folder=tmp_path / "run", **settings).train()
    keep_only(tmp_path / "run", 3)
    other = {"policy_fields": {"prior_temperature": 2.0}}
    with pytest.raises(StateError, match="prior_temperature"):
        make(folder=tmp_path / "run", **other, **settings).train(resume_from_checkpoint=True)
    anew = {"trainer": {"balance": BalanceOptions(resume="anew")}}
    begun = make(folder=tmp_path / "run", **other, **anew, **settings)
    begun.train(resume_from_checkpoint=True)
    assert begun.balance_summary()["draws"] == (8 - 3) * 8
    seal = json.loads((tmp_path / "run" / "checkpoint-6" / "hbo_state.json").read_text())
    assert (seal["step"], seal["draws"]) == (6, 24)
    keep_only(tmp_path / "run", 6)
    resumed = make(folder=tmp_path / "run", **other, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(begun, resumed)
