"""Gradient norms read off a real trainer's own steps: right, free of side effects, topped up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from hbo.data.build import BuiltMixture
from hbo.errors import ConfigError
from hbo.integrations import engine as engine_module
from hbo.integrations.observed_norms import trains_adapters
from hbo.integrations.options import BalanceOptions
from hbo.integrations.top_up import lacking
from hbo.measure.examples import Encoded
from hbo.measure.gradient_norm import norms_one_by_one
from hbo.measure.layer_norms import Dense
from hbo.measure.taps import Scope
from hbo.signals import GRADIENT_NORM, PERPLEXITY_RATIO
from tests.integrations.conftest import Train, assert_same_weights, weights
from tests.support.tiny import tiny_model

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


class Oracle(TrainerCallback):
    """Before each step, the norms of the examples that it is about to train on, one by one."""

    def __init__(self, scope: Scope) -> None:
        self.scope: Scope = scope
        self.slow: dict[int, float] = {}
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        balancer, rows = self.trainer.balancer, self.trainer.train_dataset
        for ids in balancer.look_ahead(balancer.position, balancer.draws_per_step):
            chosen = rows[ids.tolist()]
            pairs = zip(chosen["input_ids"], chosen["labels"], strict=True)
            examples = [Encoded(np.asarray(one), np.asarray(other)) for one, other in pairs]
            norms = norms_one_by_one(kwargs["model"], examples, scope=self.scope)
            self.slow |= {(state.global_step, int(i)): n for i, n in zip(ids, norms, strict=True)}


def observed(trainer: Any) -> dict[tuple[int, int], float]:
    """(steps done, example id) -> norm, of all that training showed; fills as it trains."""
    seen: dict[tuple[int, int], float] = {}
    engine = trainer.engine
    flush = engine.observer.flush

    def spy() -> Any:
        found = flush()
        step = engine.balancer.step
        seen.update(
            {(step, int(i)): n for i, n in zip(found.example_ids, found.norms, strict=True)}
        )
        return found

    engine.observer.flush = spy
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8},
        {"padding_free": True, "max_length": None},
        {"activation_checkpointing": True},
    ],
    ids=["accumulation", "one batch", "padding-free", "checkpointing"],
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.filterwarnings("ignore:.*[Pp]adding-free")
@pytest.mark.filterwarnings("ignore:.*torch.utils.checkpoint")
def test_norms_of_training_are_those_of_each_example_alone(
    make: Train, lora: bool, settings: dict[str, Any]
) -> None:
    oracle = Oracle("blocks")
    trainer_settings: dict[str, Any] = {
        "callbacks": [oracle],
        "balance": BalanceOptions(measure_every=2),
    }
    if lora:
        trainer_settings["peft_config"] = LORA
    trainer = make(
        model=tiny_model(),
        trainer=trainer_settings,
        max_steps=4,
        **settings,
    )
    oracle.trainer = trainer
    seen = observed(trainer)
    trainer.train()
    measured = {key: norm for key, norm in seen.items() if np.isfinite(norm)}
    assert {step for step, _ in measured} == {1, 3}
    assert all(np.isnan(norm) for (step, _), norm in seen.items() if step in (0, 2))
    assert len(measured) >= 12
    slow = np.array([oracle.slow[key] for key in measured])
    np.testing.assert_allclose(np.array(list(measured.values())), slow, rtol=2e-5)
    assert np.ptp(slow) > 0


def test_measuring_changes_no_bit_of_the_training(make: Train) -> None:
    plain = make("prop")
    plain.train()
    watched = make("hbo", policy_fields={"rate": 0.0})
    watched.train()
    assert (
        watched.balancer.observations.signals(0, watched.balancer.draws)
        .first[GRADIENT_NORM]
        .counts.any()
    )
    assert_same_weights(weights(plain), weights(watched))


def test_cells_that_training_showed_too_little_are_topped_up(
    make: Train, built: BuiltMixture
) -> None:
    options = BalanceOptions(probe_examples=12, measure_every=2, top_up=9.0)
    trainer = make(trainer={"balance": options}, max_steps=2, model=tiny_model())
    seen = observed(trainer)
    trainer.train()
    ids = np.array([i for (_, i), norm in seen.items() if np.isfinite(norm)])
    own = np.bincount(built.mixture.cell_of(ids), minlength=12).reshape(3, 4)
    enough = np.minimum(built.mixture.sizes, 3)
    expected = own + np.where(own < enough, enough, 0)
    first = trainer.balancer.observations.signals(2, trainer.balancer.draws).first
    np.testing.assert_array_equal(first[GRADIENT_NORM].counts, expected)
    assert (own < enough).any() and (own >= enough).any()
    assert (first[PERPLEXITY_RATIO].counts >= enough).all()


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor trains on another loss"),
        ({"loss_type": "dft"}, "loss_type 'dft' weighs the tokens"),
    ],
)
def test_what_cannot_be_measured_is_probed_and_said(
    make: Train, settings: dict[str, Any], reason: str
) -> None:
    trainer = make(max_steps=2, model=tiny_model(), **settings)
    trainer.train()
    events = [json.loads(x) for x in trainer.engine.run_log.path.read_text().splitlines()]
    (said,) = [e["text"] for e in events if e.get("code") == "norms-probed"]
    assert reason in said
    first = trainer.balancer.observations.signals(2, trainer.balancer.draws).first
    assert (first[GRADIENT_NORM].counts == 2).all()


class Odd(torch.nn.Module):
    """A layer that there is no rule for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def test_a_model_with_a_layer_without_a_rule_is_probed(make: Train) -> None:
    model = tiny_model()
    model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp, Odd())
    trainer = make(model=model, max_steps=2)
    trainer.train()
    events = [json.loads(x) for x in trainer.engine.run_log.path.read_text().splitlines()]
    (said,) = [e["text"] for e in events if e.get("code") == "norms-probed"]
    assert "there is no rule for" in said and "Odd" in said
    assert (
        trainer.balancer.observations.signals(2, trainer.balancer.draws)
        .first[GRADIENT_NORM]
        .counts.all()
    )


def test_how_many_steps_are_measured() -> None:
    model = tiny_model()
    assert not trains_adapters(model)
    assert trains_adapters(get_peft_model(model, LORA))


def test_topping_up_keeps_to_its_share_and_begins_where_least_is_known(make: Train) -> None:
    trainer = make(max_steps=1, model=tiny_model())
    trainer.train()
    balancer, engine = trainer.balancer, trainer.engine
    wanted = frozenset({GRADIENT_NORM, PERPLEXITY_RATIO})
    now = balancer.observations.signals(1, balancer.draws)
    counts = {name: now.table(name).counts for name in wanted}
    trained = 3 * 2 * 8  # work of an interval of two steps of eight

    def chosen(share: float) -> dict[str, Any]:
        found = lacking(balancer, engine.probe, trainer.model, wanted, share)
        return {min(names): cells for names, cells in found}

    everything = chosen(9.0)
    assert {name: cells.sum() for name, cells in everything.items()} == {
        name: (table < 2).sum() for name, table in counts.items()
    }
    some = chosen(0.5)
    work = sum(
        2 * cells.sum() * (3 if name == GRADIENT_NORM else 1) for name, cells in some.items()
    )
    assert 0.5 * trained - 6 < work <= 0.5 * trained
    taken = [counts[name][cells] for name, cells in some.items()]
    left = [counts[name][cells & ~some[name]] for name, cells in everything.items() if name in some]
    assert np.concatenate(taken).max() <= np.concatenate(left).min()
    assert chosen(0.0) == {}
    again = chosen(0.5)
    assert all((again[name] == cells).all() for name, cells in some.items())


def test_a_rank_that_gives_up_takes_the_others_along(
    make: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(max_steps=2, model=tiny_model())
    flags: list[float] = []

    def add(array: Any) -> Any:
        if array.shape == (1,) and array[0] == 0.0:
            flags.append(float(array[0]))
            return array + 1.0  # the other rank's word
        return array

    monkeypatch.setattr(engine_module, "add_over_ranks", add)
    trainer.train()
    assert flags[0] == 0.0
    assert GRADIENT_NORM in trainer.engine.probed
    assert "another rank" in (warnings_of(trainer)["norms-probed"])
    first = trainer.balancer.observations.signals(2, trainer.balancer.draws).first
    assert (first[GRADIENT_NORM].counts >= 2).all()


def warnings_of(trainer: Any) -> dict[str, str]:
    events = [json.loads(x) for x in trainer.engine.run_log.path.read_text().splitlines()]
    return {e["code"]: e["text"] for e in events if e["event"] == "warning"}


def test_a_run_that_gave_up_goes_on_probing_after_a_resume(make: Train, tmp_path: Path) -> None:
    # A fused head shows no gradient of its own: known only after the first measured pass.
    options = BalanceOptions(norm_scope="all", measure_every=1, probe_examples=4)
    settings = {"model": tiny_model(), "trainer": {"balance": options}, "max_steps": 4}
    whole = make(folder=tmp_path / "whole", **settings)
    whole.train()
    assert GRADIENT_NORM in whole.engine.probed
    settings["model"] = tiny_model()
    first = make(folder=tmp_path / "cut", save_strategy="steps", save_steps=3, **settings)
    first.train()
    settings["model"] = tiny_model()
    second = make(folder=tmp_path / "cut", save_strategy="steps", save_steps=3, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert GRADIENT_NORM in second.engine.probed
    assert np.array_equal(whole.balancer.probabilities, second.balancer.probabilities)


class Distraction(TrainerCallback):
    """Passes that are not the training's, in the midst of it."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"](input_ids=torch.tensor([[1, 2, 3]]))


def test_other_passes_are_not_taken_for_the_trainings(make: Train) -> None:
    settings = {"callbacks": [Distraction()], "balance": BalanceOptions(measure_every=1)}
    trainer = make(model=tiny_model(), trainer=settings, max_steps=2)
    seen = observed(trainer)
    forward = trainer.model.forward

    def with_reference(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            forward(*args, **kwargs)
        return forward(*args, **kwargs)

    trainer.model.forward = with_reference
    trainer.train()
    assert np.isfinite(list(seen.values())).all()
    assert "norms-probed" not in warnings_of(trainer)


class Failing(TrainerCallback):
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_a_training_that_breaks_off_leaves_nothing_on_the_model(make: Train) -> None:
    trainer = make(model=tiny_model(), trainer={"callbacks": [Failing()]}, max_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_memory_that_runs_out_while_measuring_costs_the_norms_only(
    make: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Dense, "squares", full)
    balance = BalanceOptions(measure_every=1)
    trainer = make(model=tiny_model(), trainer={"balance": balance}, max_steps=1)
    trainer.train()
    assert "memory ran out" in (trainer.engine.observer.norms_given_up or "")


def test_nothing_to_measure_is_said_before_the_first_step(make: Train) -> None:
    trainer = make(model=tiny_model(), trainer={"balance": BalanceOptions(norm_scope="adapters")})
    with pytest.raises(ConfigError, match="use 'all'"):
        trainer.train()
    assert trainer.state.global_step == 0
