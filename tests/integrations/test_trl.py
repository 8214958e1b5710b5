"""BalancedSFTTrainer on a tiny model: what it observes, logs, and leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTTrainer

from hbo.data.build import BuiltMixture, build_mixture
from hbo.errors import ConfigError
from hbo.integrations.options import BalanceOptions
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.measure.examples import Encoded
from hbo.measure.response import response_losses
from hbo.runlog import read_log
from tests.integrations.conftest import Train, assert_same_weights, sft_config, weights
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def encoded(built: BuiltMixture, ids: list[int]) -> list[Encoded]:
    rows = built.dataset[ids]
    return [
        Encoded(np.array(tokens), np.array(labels))
        for tokens, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    ]


def trained(trainer: BalancedSFTTrainer) -> BalancedSFTTrainer:
    """Train at once: a trainer seeds the global random state (dropout) when it is made."""
    trainer.train()
    return trainer


def test_it_trains_on_the_stream_and_accounts_for_it(make: Train, built: BuiltMixture) -> None:
    trainer = make()
    trainer.train()
    summary = trainer.balance_summary()
    assert summary["draws"] == 64 == sum(s["draws"] for s in summary["subsets"].values())
    replay = trainer.balancer._consumed.at(0).take(64)
    subsets = built.mixture.subset_of(replay)
    assert [s["draws"] for s in summary["subsets"].values()] == np.bincount(subsets).tolist()
    seen = {name: len(set(replay[subsets == k])) for k, name in enumerate(built.mixture.names)}
    for name, subset in summary["subsets"].items():
        assert subset["never_seen"] == subset["examples"] - seen[name]
        assert np.isclose(subset["passes"], subset["draws"] / subset["examples"])
    assert np.isclose(sum(map(sum, summary["probabilities"].values())), 1)
    assert 0 < summary["balance_seconds"] < 60


def test_observed_losses_are_those_of_the_examples(make: Train, built: BuiltMixture) -> None:
    # A learning rate of zero: every loss seen in training can be recomputed afterwards.
    model = tiny_model()
    trainer = make("prop", model=model, learning_rate=0.0, max_steps=4)
    trainer.train()
    ids = trainer.balancer._consumed.at(0).take(32)
    examples = encoded(built, ids.tolist())
    losses = response_losses(model, examples, tokens_per_batch=512, pad_id=0)
    tokens = np.array([example.response_tokens for example in examples])
    subsets = built.mixture.subset_of(ids)
    summary = trainer.balance_summary()
    for k, name in enumerate(built.mixture.names):
        mine = subsets == k
        expected = (losses[mine] * tokens[mine]).sum() / tokens[mine].sum()
        assert np.isclose(summary["subsets"][name]["train_loss"], expected, rtol=1e-5)
        assert summary["subsets"][name]["tokens"] == tokens[mine].sum()


def test_the_log_history_and_run_log_tell_each_subset(make: Train) -> None:
    trainer = make(max_steps=7)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {f"mixture/{n}/share" for n in ("copy", "add", "noise")} <= set(logs[0])
    assert all("entropy" in entry and "mean_token_accuracy" in entry for entry in logs)
    events = read_log(trainer.engine.run_log.path)
    steps = [event for event in events if event["event"] == "step"]
    assert [event["step"] for event in steps] == [2, 4, 6, 7]
    assert steps[-1]["draws"] == 56
    drawn = sum(subset["draws"] for event in steps for subset in event["subsets"].values())
    assert drawn == 56
    updates = [event for event in events if event["event"] == "update"]
    assert [event["step"] for event in updates] == [2, 4, 6]
    assert [event["effective_draw"] for event in updates] == [32, 48, 64]
    for event in updates:
        assert np.isclose(sum(event["global"]["after"].values()), 1)
        for local in event["local"].values():
            assert np.isclose(sum(local["after"]), 1)
        json.dumps(event, allow_nan=False)


def test_probes_leave_the_run_as_it_was_bit_for_bit(make: Train) -> None:
    # Dropout is on; hbo with rate 0 probes gradient norms and losses but never moves.
    plain = trained(make("prop"))
    probing = BalanceOptions(signals="probe")
    probed = trained(make("hbo", policy_fields={"rate": 0.0}, trainer={"balance": probing}))
    assert probed.balancer.observations.state_dict()["before"]
    assert probed.balance_summary()["stream_sha256"] == plain.balance_summary()["stream_sha256"]
    assert_same_weights(weights(plain), weights(probed))


def test_we_only_choose_the_examples(make: Train, built: BuiltMixture, tmp_path: Path) -> None:
    # The same rows in the same order through SFTTrainer itself give the same weights.
    ours = trained(make("prop"))
    ids = ours.balancer._consumed.at(0).take(64)

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return ids.tolist()

    plain = InOrder(
        tiny_model(dropout=0.1),
        sft_config(tmp_path / "plain"),
        train_dataset=built.dataset,
        processing_class=tiny_tokenizer(),
    )
    plain.train()
    assert_same_weights(weights(ours), weights(plain))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epochs", [1, 2])
def test_epochs_are_whole_global_batches_and_the_stream_goes_on(
    make: Train, workers: int, epochs: int
) -> None:
    trainer = make("prop", max_steps=-1, num_train_epochs=epochs, dataloader_num_workers=workers)
    trainer.train()
    assert trainer.state.global_step == 12 * epochs  # 93 examples in batches of 8
    reference = make("prop", max_steps=12 * epochs)
    reference.train()
    assert (
        trainer.balance_summary()["stream_sha256"] == reference.balance_summary()["stream_sha256"]
    )


def test_workers_do_not_change_an_adaptive_run(make: Train) -> None:
    runs = [trained(make(dataloader_num_workers=n, max_steps=10)) for n in (0, 2)]
    assert_same_weights(weights(runs[0]), weights(runs[1]))
    laws = [trainer.balance_summary()["probabilities"] for trainer in runs]
    assert laws[0] == laws[1]
    assert runs[1].args.dataloader_prefetch_factor == 1  # lag 2 x 2 micro-batches, 2 workers
    warnings = [e for e in read_log(runs[1].engine.run_log.path) if e["event"] == "warning"]
    assert any("dataloader_prefetch_factor lowered from 2 to 1" in e["text"] for e in warnings)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True},
        {"bf16": True},
        {"padding_free": True, "max_length": None},
        {"pad_to_multiple_of": 16},
        {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        {"torch_empty_cache_steps": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_sft_config_that_must_work(make: Train, settings: dict[str, Any]) -> None:
    model = tiny_model()
    reference = trained(make("prop", model=tiny_model(), max_steps=2))
    trainer = trained(make("prop", model=model, max_steps=2, **settings))
    ours, theirs = (
        [subset["train_loss"] for subset in each.balance_summary()["subsets"].values()]
        for each in (trainer, reference)
    )
    tolerance = 2e-2 if settings.get("bf16") else 1e-4
    assert np.allclose(ours, theirs, rtol=tolerance, equal_nan=True)


def test_lora_trains_adapters_only_and_is_probed(make: Train) -> None:
    trainer = make(trainer={"peft_config": LORA})
    trainer.train()
    before = trainer.balancer.observations.state_dict()["before"]
    assert {"gradient_norm", "perplexity_ratio"} <= set(before)
    assert trainer.balance_summary()["draws"] == 64


def test_evaluation_adds_one_number_for_the_best_checkpoint(
    make: Train, built: BuiltMixture
) -> None:
    held_out = {"copy": built.dataset.select(range(6)), "add": built.dataset.select(range(60, 70))}
    trainer = make(
        trainer={"eval_dataset": held_out},
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="mixture_loss",
        greater_is_better=False,
    )
    trainer.train()
    evaluations = [e for e in trainer.state.log_history if "eval_mixture_loss" in e]
    parts = [e for e in trainer.state.log_history if "eval_copy_loss" in e]
    others = [e for e in trainer.state.log_history if "eval_add_loss" in e]
    for whole, copy, add in zip(evaluations, parts, others, strict=True):
        expected = (copy["eval_copy_loss"] + add["eval_add_loss"]) / 2
        assert np.isclose(whole["eval_mixture_loss"], expected)
    assert trainer.state.best_metric == min(e["eval_mixture_loss"] for e in evaluations)


@pytest.mark.parametrize("cut", [3, 4])
def test_resume_is_exact_with_dropout_on(make: Train, tmp_path: Path, cut: int) -> None:
    whole = trained(make(folder=tmp_path / "whole", save_strategy="steps", save_steps=cut))
    trained(make(folder=tmp_path / "cut", save_strategy="steps", save_steps=cut))
    checkpoint = tmp_path / "cut" / f"checkpoint-{cut}"
    about = json.loads((checkpoint / "hbo_state.json").read_text())
    assert (about["step"], about["identity"]["policy"]["type"]) == (cut, "HBO")
    resumed = make(folder=tmp_path / "cut", save_strategy="steps", save_steps=cut)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(weights(whole), weights(resumed))
    ours, theirs = resumed.balance_summary(), whole.balance_summary()
    for summary in (ours, theirs):
        del summary["balance_seconds"]
    assert ours == theirs


def test_a_dataset_that_trl_prepares_itself_keeps_its_cells(tmp_path: Path) -> None:
    built = build_mixture(
        {
            "chat": tiny_records(20, kind="copy", layout="chat"),
            "plain": tiny_records(12, kind="add"),
        },
        difficulty="length",
        groups=2,
        tokenizer=tiny_tokenizer(),
    )
    shuffled = built.dataset.shuffle(seed=1)
    trainer = BalancedSFTTrainer(
        tiny_model(),
        sft_config(tmp_path, max_length=30, max_steps=2),
        mixture=type(built)(shuffled, built.mixture, built.limits),
        policy="prop",
        processing_class=tiny_tokenizer(),
    )
    lengths = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    assert max(lengths) <= 30
    assert trainer.balancer.mixture.num_examples == len(trainer.train_dataset)
    trainer.train()
    assert trainer.balance_summary()["draws"] == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
        ({"dataloader_num_workers": 4, "gradient_accumulation_steps": 1}, "look|ahead|workers"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    make: Train, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_a_sampler_of_somebody_else_is_noticed(make: Train) -> None:
    trainer = make()
    trainer._get_train_sampler = lambda dataset=None: list(range(93))
    with pytest.raises(Exception, match="another sampler replaced ours"):
        trainer.train()


def test_the_paper_also_updates_before_the_first_step(make: Train) -> None:
    trainer = trained(make("hbo-paper", policy_fields={"inner_steps": 5}, max_steps=4))
    updates = [e for e in read_log(trainer.engine.run_log.path) if e["event"] == "update"]
    assert [event["step"] for event in updates] == [0, 2, 4]
    assert all(reward > 0 for reward in updates[0]["global"]["rewards"].values())


def test_a_stop_between_two_logs_tells_no_draw_twice(make: Train, tmp_path: Path) -> None:
    class StopAtThree(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_save = control.should_training_stop = state.global_step == 3

    folder = tmp_path / "run"
    trained(make(folder=folder, trainer={"callbacks": [StopAtThree()]}))
    resumed = make(folder=folder)
    resumed.train(resume_from_checkpoint=True)
    steps = [e for e in read_log(folder / "run.jsonl") if e["event"] == "step"]
    assert [event["step"] for event in steps] == [2, 4, 6, 8]
    drawn = sum(subset["draws"] for event in steps for subset in event["subsets"].values())
    assert drawn == resumed.balance_summary()["draws"] == 64


def test_datasets_in_place_of_a_mixture_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixture is a dict; pass what build_mixture"):
        BalancedSFTTrainer(tiny_model(), sft_config(tmp_path), mixture={"a": []})  # type: ignore[arg-type]


def test_on_a_cpu_the_head_may_see_labelled_tokens_only_and_nothing_else_changes(
    make: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.trainer import utils

    scored: list[int] = []
    apply = utils._ChunkedLogProbFunction.apply

    def counted(hidden: Any, *rest: Any) -> Any:
        scored.append(len(hidden))
        return apply(hidden, *rest)

    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", counted)
    before, used = utils._use_triton, {}
    for way in ("ours", "theirs"):
        scored.clear()
        trainer = make(policy="uni", max_steps=2)
        trainer.labelled_tokens_only = way == "ours"
        trained(trainer)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        used[way] = scored[:], losses, weights(trainer)
        assert utils._use_triton is before
    assert all(a < b for a, b in zip(used["ours"][0], used["theirs"][0], strict=True))
    assert sum(used["ours"][0]) == trainer.balance_summary()["tokens"]
    assert used["ours"][1] == pytest.approx(used["theirs"][1], rel=1e-5)
    for name, value in used["theirs"][2].items():
        assert torch.allclose(used["ours"][2][name], value, atol=1e-6), name
