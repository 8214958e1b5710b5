"""Losses that are not finite: of one example, of a whole training, and the way back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from hbo.data.build import BuiltMixture
from hbo.errors import StateError
from hbo.integrations.checkpoints import newest_checkpoint
from hbo.integrations.observer import BatchObserver, Observed
from hbo.integrations.transformers import BalancedTrainer
from hbo.policies import make_policy
from hbo.runlog import RunLog, read_log
from tests.failures.runs import SAVING, events, warnings
from tests.integrations.conftest import Train
from tests.support.tiny import tiny_model, tiny_tokenizer


class Forbidding(nn.Linear):
    """A language-model head that gives one token no probability at all, as padded ones do."""

    forbidden: int

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().forward(hidden)
        barred = torch.arange(logits.shape[-1]) == self.forbidden
        return logits.masked_fill(barred, -torch.inf)


def model_without(letter: str) -> Any:
    model = tiny_model()
    model.lm_head.__class__ = Forbidding
    model.lm_head.forbidden = tiny_tokenizer().convert_tokens_to_ids(letter)
    return model


def laws_of(path: Path) -> list[Any]:
    return [entry["global"]["after"] for entry in read_log(path) if entry["event"] == "update"]


@pytest.mark.parametrize("policy", ["hbo", "hbo-paper", "hbo-released"])
def test_examples_of_infinite_loss_are_in_no_reward_and_the_run_goes_on(
    built: BuiltMixture, tmp_path: Path, policy: str
):
    """Their gradients are finite here: a token without probability has none."""
    trainer = BalancedTrainer(
        model_without("7"),
        TrainingArguments(
            str(tmp_path),
            max_steps=8,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=2,
            disable_tqdm=True,
        ),
        mixture=built,
        policy=make_policy(policy, update_interval=2),
        processing_class=tiny_tokenizer(),
        run_log=RunLog(tmp_path / "run.jsonl"),
    )
    trainer.train()
    log = read_log(trainer.engine.run_log.path)
    said = [entry["text"] for entry in log if entry.get("code") == "loss-not-finite"]
    assert said and all(text.endswith("no average: add") for text in said)
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())
    summary = trainer.balance_summary()
    assert summary["draws"] == 64
    assert all(np.isfinite(subset["train_loss"]) for subset in summary["subsets"].values())
    laws = [list(law.values()) for law in laws_of(trainer.engine.run_log.path)]
    assert np.isfinite(laws).all() and (np.array(laws) > 0).all()
    json.dumps(trainer.state.stateful_callbacks, allow_nan=False)


def test_what_is_not_finite_leaves_the_others_rewards_as_they_are(
    make: Train, monkeypatch: pytest.MonkeyPatch
):
    """The same run with the broken losses unknown decides the same."""
    laws = []
    flush = BatchObserver.flush
    for value in (np.nan, np.inf, -np.inf):

        def broken(self: BatchObserver, value: float = value) -> Observed:
            seen = flush(self)
            return replace(seen, loss=np.where(seen.example_ids % 3 == 0, value, seen.loss))

        monkeypatch.setattr(BatchObserver, "flush", broken)
        trainer = make(model=tiny_model())
        trainer.train()
        laws.append(laws_of(trainer.engine.run_log.path))
        log = read_log(trainer.engine.run_log.path)
        assert "loss-not-finite" in {entry.get("code") for entry in log}
    assert laws[0] == laws[1] == laws[2]


class Overflow(TrainerCallback):
    """From some step on the model's head gives NaN: its weights are then lost."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            with torch.no_grad():
                model.lm_head.weight[0] = torch.inf


def test_weights_that_are_not_finite_stop_the_training(make: Train):
    trainer = make(trainer={"callbacks": [Overflow(4)]}, max_steps=100, logging_steps=1)
    with pytest.raises(StateError, match=r"not one finite loss in steps 5 to 7; "):
        trainer.train()
    laws = [list(law.values()) for law in laws_of(trainer.engine.run_log.path)]
    assert np.isfinite(laws).all() and (np.array(laws) > 0).all()


def test_checkpoints_with_lost_weights_are_passed_over(make: Train, tmp_path: Path):
    saving = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 50}
    trainer = make(
        trainer={"callbacks": [Overflow(4)]}, folder=tmp_path / "run", max_steps=20, **saving
    )
    with pytest.raises(StateError, match="training is lost"):
        trainer.train()
    found, damaged = newest_checkpoint(tmp_path / "run")
    assert found is not None and found.step == 4
    assert damaged[-1] == "checkpoint-6 is damaged (its weights are not finite) and passed over"


def rate(value: float) -> list[str]:
    return ["--set", f"training.learning_rate={value}", "--set", "training.logging_steps=1"]


def steps(number: int) -> list[str]:
    return ["--set", f"training.max_steps={number}"]


def test_a_diverged_run_goes_on_from_before_with_a_lower_rate(workspace: Path, hbo):
    run = workspace / "run"
    assert hbo("train", "config.yaml", *SAVING, *rate(1e-3)).status == 0
    (run / "summary.json").unlink()
    said = hbo("train", "config.yaml", *SAVING, *rate(1e6), *steps(30), "--resume")
    assert (said.status, said.out.count("Traceback")) == (2, 0)
    warning, error = said.err.splitlines()
    assert warning.startswith("warning: step ")
    assert error.startswith("error: training is lost: not one finite loss in steps ")
    assert "lower training.learning_rate" in error
    assert "loss-not-finite" in warnings(run)
    for path in run.glob("checkpoint-*"):  # finite or not, the rate has ruined them
        if int(path.name.removeprefix("checkpoint-")) > 4:
            path.rename(workspace / path.name)
    said = hbo("train", "config.yaml", *SAVING, *rate(1e-4), *steps(8), "--resume")
    assert (said.status, said.err) == (0, ""), said.err
    assert "continuing from step 4" in said.out
    assert "training.learning_rate" in said.out  # the notice of what changed
    # From 0, where the first schedule had ended, on the way down from 1e-4 to 0.
    assert "learning rate 3.75e-05" in said.out
    found = [event["step"] for event in events(run, "step")]
    assert found == list(range(1, 9))
    assert all(event["loss"] > 0 for event in events(run, "step"))
