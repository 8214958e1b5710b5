"""What TRL, peft or torch would refuse only after an hour of scoring is refused by ``hbo plan``."""

# ruff: noqa: E501  (a table of cases reads best with one case a line)

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny import save_tiny
from tests.support.workspace import write_config

STEPS = {"max_steps": 2, "per_device_train_batch_size": 2}
BEST = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}

TRAINING: dict[str, tuple[dict[str, object], str]] = {
    "text as a number": ({"per_device_train_batch_size": "4"}, "per_device_train_batch_size: is '4'; must be a whole number"),
    "text as a truth value": ({"bf16": "yes"}, "training.bf16: is 'yes'; must be true or false (or null)"),
    "a rate of decay": ({"adam_beta1": 2}, "training.adam_beta1: is 2; must be at least 0 and below 1"),
    "epsilon": ({"adam_epsilon": -1}, "training.adam_epsilon: is -1; must be a finite number, at least 0"),
    "label smoothing": ({"label_smoothing_factor": 5}, "training.label_smoothing_factor: is 5; must be at least 0 and below 1"),
    "loss": ({"loss_type": "mse"}, "training.loss_type: unknown value 'mse'; Allowed: nll, dft"),
    "length": ({"max_length": 1}, "training.max_length: is 1; must be at least 2"),
    "truncation": ({"truncation_mode": "keep"}, "training.truncation_mode: unknown value 'keep'; did you mean 'keep_"),
    "checkpoints kept": ({"save_total_limit": 0}, "training.save_total_limit: is 0; must be at least 1"),
    "unknown tracker": ({"report_to": "wanbd"}, "training.report_to: unknown tracker 'wanbd'; did you mean 'wandb'?"),
    "missing tracker": ({"report_to": ["clearml"]}, "training.report_to: the tracker 'clearml' is not installed"),
    "packing": ({"packing": True, "max_length": None}, "training.packing: needs training.max_length, the tokens of a row"),
    "packing strategy": ({"packing": True, "packing_strategy": "best"}, "training.packing_strategy: unknown value 'best'"),
    "packed evaluation": ({"packing": True, "eval_packing": True}, "training.eval_packing: eval_packing=True is not supported"),
    "a loss that hides": ({"liger_kernel_config": {"fused_linear_cross_entropy": True}}, "training.liger_kernel_config: liger_kernel_config.fused_linear_cross_entropy=True gives a loss without logits"),
    "offloading without an accelerator": ({"activation_offloading": True}, "training.activation_offloading: activation_offloading=True moves activations from an accelerator"),
    "another sampler": ({"train_sampling_strategy": "group_by_length"}, "training.train_sampling_strategy: train_sampling_strategy="),
    "another batch size": ({"auto_find_batch_size": True}, "training.auto_find_batch_size: auto_find_batch_size changes"),
    "optimiser": ({"optim": "adamw_bnb_8bit"}, "training: the optimiser or its schedule refuses this: 'You need to install"),
    "schedule": ({"lr_scheduler_kwargs": {"x": 1}}, "training: the optimiser or its schedule refuses this: "),
    "metric": ({**BEST, "metric_for_best_model": "mixtur_loss"}, "training.metric_for_best_model: unknown metric 'mixtur_loss'; did you mean 'eval_mixture_loss'?"),
}  # fmt: skip
TUNING: dict[str, tuple[dict[str, object], str]] = {
    "rank": ({"lora_r": 0}, "tuning.lora_r: is 0; must be at least 1"),
    "dropout": ({"lora_dropout": 1.5}, "tuning.lora_dropout: is 1.5; must be at least 0 and below 1"),
    "type": ({"dtype": "float"}, "tuning.dtype: unknown value 'float'; did you mean"),
    "text as a truth value": ({"use_peft": "yes"}, "tuning.use_peft: is 'yes'; must be true or false"),
    "modules": ({"lora_target_modules": ["q_prj"]}, "tuning: peft refuses this: 'Target modules {'q_prj'} not found"),
    "task": ({"lora_task_type": "SFT"}, "tuning: peft refuses this: 'Invalid task type"),
    "attention": ({"attn_implementation": "fast"}, "cannot be loaded: 'Specified `attn_implementation=\"fast\"`"),
}  # fmt: skip


def refused(workspace: Path, hbo, message: str) -> None:
    before = sorted(workspace.rglob("*"))
    said = hbo("plan", "config.yaml")
    assert said.err.startswith("error: config.yaml:")
    assert message in said.err
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.parametrize("case", TRAINING)
def test_training(workspace: Path, hbo, case: str):
    values, message = TRAINING[case]
    write_config(workspace, training={**STEPS, **values})
    refused(workspace, hbo, message)


@pytest.mark.parametrize("case", TUNING)
def test_tuning(workspace: Path, hbo, case: str):
    values, message = TUNING[case]
    write_config(workspace, tuning={"use_peft": True, **values})
    refused(workspace, hbo, message)


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def cut_off(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def of_unknown_kind(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))


def of_few_tokens(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        del config[key]
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))


@pytest.mark.parametrize("key", ["model", "scoring_model"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_weights, "the folder 'broken' has no weights (*.safetensors, *.gguf)"),
        (cut_off, "model.safetensors' is cut off or damaged"),
        (
            of_unknown_kind,
            "cannot be loaded: 'The checkpoint you are trying to load has model type",
        ),
        (of_few_tokens, "'broken' knows 100 tokens, and the tokenizer of"),
    ],
)
def test_models(
    workspace: Path, hbo, damage: Callable[[Path], None], message: str, key: str
):  # fmt: skip
    damage(save_tiny(workspace / "broken"))
    scoring = {"scoring_model": "broken"} if key == "scoring_model" else {}
    difficulty = {"metric": "loss", "groups": 2, "cache_dir": "scores", **scoring}
    write_config(workspace, difficulty=difficulty, **({} if scoring else {"model": "broken"}))
    refused(workspace, hbo, message)


def test_the_mean_loss_of_subsets_chooses_where_no_metric_is_named(workspace: Path, hbo):
    write_config(workspace, training={**STEPS, **BEST}, balance={"policy": "prop"})
    said = hbo("train", "config.yaml")
    assert said.status == 0, said.err
    log = (workspace / "run" / "run.jsonl").read_text().splitlines()
    evaluations = [event for event in map(json.loads, log) if event["event"] == "evaluation"]
    assert [(event["step"], event["split"]) for event in evaluations] == [
        (0, "test"),
        (1, "validation"),
        (2, "validation"),
        (2, "test"),
    ]
    assert set(evaluations[1]["subsets"]) == {"german", "arabic"}
    assert evaluations[1]["macro"]["loss"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": "german.jsonl"}, "output_dir: 'german.jsonl' is a file; name a folder"),
        ({"output_dir": "german.jsonl/run"}, "german.jsonl' is a file; name a folder"),
        ({"output_dir": "x" * 300}, "cannot be a folder: File name too long"),
        ({"difficulty": {"metric": "loss", "cache_dir": "german.jsonl"}}, "difficulty.cache_dir: "),
    ],
)
def test_places_that_cannot_be_written_to(workspace: Path, hbo, changes: dict, message: str):
    write_config(workspace, **changes)
    refused(workspace, hbo, message)


def test_a_place_that_does_not_exist_on_this_machine_is_the_environments_fault(
    workspace: Path, hbo
):
    write_config(workspace, output_dir="/proc/none/run")
    said = hbo("plan", "config.yaml")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "output_dir: '/proc" in said.err


def test_a_plan_leaves_nothing_behind(workspace: Path, hbo):
    difficulty = {"metric": "loss", "groups": 2, "cache_dir": "scores"}
    write_config(workspace, difficulty=difficulty)
    before = sorted(workspace.rglob("*"))
    assert hbo("plan", "config.yaml").status == 0
    assert sorted(workspace.rglob("*")) == before


def test_passes_with_dropout_need_some(workspace: Path, hbo):
    balance = {"policy": "multiuat", "update_interval": 1, "dropout_passes": 3}
    write_config(workspace, balance=balance, tuning={"use_peft": True, "lora_dropout": 0.0})
    refused(workspace, hbo, "balance.dropout_passes: asks for passes with dropout, and this model")
    write_config(workspace, balance=balance, tuning={"use_peft": True, "lora_dropout": 0.1})
    assert hbo("plan", "config.yaml").status == 0


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"benchmarks": ["xcopaa"]}, "evaluation.benchmarks: lm-evaluation-harness has no task"),
        (
            {"benchmarks": ["xcopa"], "harness": {"files": "nowhere"}},
            "evaluation.harness.files: 'nowhere' is no folder",
        ),
    ],
)
def test_benchmarks_that_only_the_evaluation_would_miss(
    workspace: Path, hbo, evaluation: dict, message: str
):
    write_config(workspace, evaluation=evaluation)
    refused(workspace, hbo, message)
