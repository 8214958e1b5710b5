"""Gradient norms read off a real trainer's own steps: right, free of side effects, topped up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from hbo.data.build import BuiltMixture
from hbo.integrations.observed_norms import trains_adapters
from hbo.integrations.options import BalanceOptions
from hbo.integrations.top_up import lacking
from hbo.measure.examples import Encoded
from hbo.measure.gradient_norm import norms_one_by_one
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
