"""What happens to trainers in the wild: caps that are just enough, peeks, crashes, odd batches."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hbo.data.build import BuiltMixture
from hbo.errors import ConfigError
from hbo.integrations.fit import check_parallelism
from hbo.integrations.options import BalanceOptions
from hbo.integrations.transformers import BalancedTrainer, attach
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.measure.probe import Probe
from hbo.policies import make_policy
from hbo.runlog import RunLog, read_log
from hbo.sampling.limits import Limits
from tests.integrations.conftest import Train, sft_config
from tests.support.tiny import tiny_model, tiny_tokenizer


def capped(built: BuiltMixture, draws: list[int]) -> BuiltMixture:
    passes = np.array(draws) / built.mixture.subset_sizes
    return BuiltMixture(built.dataset, built.mixture, Limits(np.zeros(3), np.ones(3), passes))


def capped_trainer(built: BuiltMixture, folder: Path, **settings: Any) -> BalancedSFTTrainer:
    return BalancedSFTTrainer(
        tiny_model(),
        sft_config(folder, **settings),
        mixture=capped(built, [30, 6, 4]),
        policy=make_policy("hbo", update_interval=2),
        processing_class=tiny_tokenizer(),
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_max_passes_may_be_used_up_to_the_last_draw(
    built: BuiltMixture, tmp_path: Path, workers: int
) -> None:
    trainer = capped_trainer(built, tmp_path, max_steps=5, dataloader_num_workers=workers)
    trainer.train()  # the loader looks at a sixth step, for which nothing is left
    assert trainer.balancer.draws.sum(axis=1).tolist() == [30, 6, 4]


def test_more_steps_than_max_passes_allow_are_refused_before_any(
    built: BuiltMixture, tmp_path: Path
) -> None:
    trainer = capped_trainer(built, tmp_path, max_steps=6)
    with pytest.raises(ConfigError, match="at most 5 steps or raise max_passes"):
        trainer.train()
    assert trainer.state.global_step == 0


class Peek(TrainerCallback):
    """Looks at a batch now and then, as callbacks that show examples do."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (3, 5):
            self.seen = next(iter(kwargs["train_dataloader"]))


def test_peeking_into_the_loader_changes_nothing(make: Train) -> None:
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    plain = make(model=tiny_model(), **settings)  # a look takes random numbers from dropout
    peeked = make(model=tiny_model(), trainer={"callbacks": [Peek()]}, **settings)
    plain.train()
    peeked.train()
    ours, theirs = (t.balance_summary()["stream_sha256"] for t in (plain, peeked))
    assert ours == theirs


class CrashOnce(TrainerCallback):
    """Breaks the first training off inside a step."""

    crashed = False

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and not self.crashed:
            self.crashed = True
            raise RuntimeError("boom")


def test_a_training_that_broke_off_leaves_nothing_for_the_next(make: Train) -> None:
    trainer = make(trainer={"callbacks": [CrashOnce()]})
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    trainer.train()
    assert trainer.balance_summary()["draws"] == 64


def test_padding_of_a_flattened_batch_belongs_to_no_example(make: Train) -> None:
    summaries = []
    for settings in ({}, {"padding_free": True, "max_length": None, "pad_to_multiple_of": 8}):
        trainer = make("prop", model=tiny_model(), learning_rate=0.0, **settings)
        trainer.train()
        summaries.append(trainer.balance_summary())
    plain, flat = summaries
    assert flat["tokens"] == plain["tokens"]
    for name, subset in flat["subsets"].items():
        assert subset["train_loss"] == pytest.approx(plain["subsets"][name]["train_loss"], rel=1e-4)


class Silent(LlamaForCausalLM):
    """Computes its loss and hides its logits in training, as fused losses do."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if self.training:
            output.logits = None
        return output


@pytest.mark.parametrize("signals", ["probe", "observed"])
def test_losses_that_cannot_be_observed_can_be_probed(
    built: BuiltMixture, tmp_path: Path, signals: str
) -> None:
    model = tiny_model()
    model.__class__ = Silent
    trainer = BalancedTrainer(
        model,
        TrainingArguments(
            str(tmp_path), max_steps=4, use_cpu=True, report_to=[], save_strategy="no"
        ),
        mixture=built,
        policy=make_policy("hbo", update_interval=2),
        processing_class=tiny_tokenizer(),
        balance=BalanceOptions(signals=signals),
    )
    if signals == "observed":
        with pytest.raises(Exception, match=r"set balance\.signals to probe"):
            trainer.train()
        return
    trainer.train()
    assert trainer.balance_summary()["draws"] == 32
    assert not np.allclose(trainer.balancer.probabilities, built.mixture.sizes / 93)


def test_attach_takes_the_place_of_any_dataset(built: BuiltMixture, tmp_path: Path) -> None:
    class Other(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

    trainer = Trainer(
        tiny_model(),
        TrainingArguments(
            str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no"
        ),
        train_dataset=Other(),
        data_collator=DataCollatorForSeq2Seq(tiny_tokenizer()),
    )
    attach(trainer, built, "prop").train()
    assert trainer.balance_summary()["draws"] == 16


def test_evaluate_takes_its_prefix_by_place_too(make: Train, built: BuiltMixture) -> None:
    trainer = make(trainer={"eval_dataset": {"copy": built.dataset.select(range(6))}})
    assert "eval_mixture_loss" in trainer.evaluate()  # before any training
    assert "test_mixture_loss" in trainer.evaluate(None, None, "test")


def test_only_what_an_update_pays_for_is_probed(
    make: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, list[str]]] = []
    measure = Probe.measure

    def noting(self: Probe, model: Any, wanted: Any, number: int, **kwargs: Any) -> Any:
        asked.append((number, sorted(wanted)))
        return measure(self, model, wanted, number, **kwargs)

    monkeypatch.setattr(Probe, "measure", noting)
    fields = {"global_interval": 4, "local_interval": 2}
    trainer = make("hbo", policy_fields=fields, trainer={"balance": BalanceOptions("probe")})
    trainer.train()
    assert asked == [
        (step, ["perplexity_ratio"] if step % 4 else ["gradient_norm", "perplexity_ratio"])
        for step in (2, 4, 6, 8)
    ]


def test_one_probed_example_a_cell_still_gives_standard_errors(make: Train) -> None:
    # Without errors nothing would be shrunk, and noise would be paid as if it were signal.
    trainer = make(trainer={"balance": BalanceOptions(signals="probe", probe_examples=4)})
    trainer.train()
    updates = [e for e in read_log(trainer.engine.run_log.path) if e["event"] == "update"]
    assert all(error > 0 for event in updates for error in event["global"]["errors"].values())


def test_only_the_main_process_writes_the_run_log(
    built: BuiltMixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "is_world_process_zero", lambda _: False)
    trainer = BalancedSFTTrainer(
        tiny_model(),
        sft_config(tmp_path),
        mixture=built,
        policy="prop",
        processing_class=tiny_tokenizer(),
        run_log=RunLog(tmp_path / "run.jsonl"),
    )
    assert trainer.engine.run_log.path is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("args", SimpleNamespace(n_gpu=4), "4 GPUs in one process .* torchrun --nproc_per_node 4"),
        ("get_tp_size", lambda: 2, "tensor, context and sequence parallelism"),
    ],
)
def test_ways_to_cut_a_batch_that_are_no_ranks_are_refused(
    make: Train, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, message: str
) -> None:
    trainer = make()
    monkeypatch.setattr(trainer, name, value)
    with pytest.raises(ConfigError, match=message):
        check_parallelism(trainer)
