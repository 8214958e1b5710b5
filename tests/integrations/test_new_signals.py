"""Signals of held-out data, hidden states and a look-ahead step, in real trainers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from hbo.data.build import BuiltMixture, build_mixture
from hbo.errors import ConfigError, StateError
from hbo.integrations.options import BalanceOptions
from hbo.integrations.torch import BalancedLoop
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.measure.sharding import GRADIENT_SIGNALS
from hbo.measure.uncertainty import SPREADS
from hbo.measure.whole import WHOLE
from hbo.mixture import FloatArray, IntArray
from hbo.policies.base import PolicyState
from hbo.signals import HELDOUT_LOSS, HELDOUT_VARIANCE, LOOKAHEAD_GAIN, Signals
from tests.integrations.conftest import SUBSETS, assert_same_weights, sft_config, weights
from tests.support.tiny import tiny_model, tiny_records, tiny_tokenizer

WHOLE_NAMES = tuple(sorted(WHOLE))
DROPOUT = BalanceOptions(dropout_passes=2, heldout_examples=3)
VALIDATION = {
    name: tiny_records(n + 5, kind=name, layout="chat")[n:] for name, n in SUBSETS.items()
}


@dataclass(frozen=True)
class Watching:
    """Keeps proportional shares, and what it is shown."""

    wanted: tuple[str, ...] = WHOLE_NAMES
    interval: int = 4
    update_at_start: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.wanted)

    def needs_at(self, step: int) -> frozenset[str]:
        return self.needs

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        return {"law": (sizes / sizes.sum()).tolist(), "seen": {}}

    def probabilities(self, state: PolicyState) -> FloatArray:
        return np.array(state["law"])

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        seen = {name: signals.whole_values(name).tolist() for name in self.wanted}
        return state | {"seen": seen}

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        return {}


@pytest.fixture(scope="module")
def held(built: BuiltMixture) -> BuiltMixture:
    """The mixture with five validation examples of each subset."""
    other = build_mixture(
        {name: tiny_records(2, kind=name, layout="chat") for name in SUBSETS},
        difficulty="length",
        groups=4,
        tokenizer=tiny_tokenizer(),
        heldout=VALIDATION,
    )
    return replace(built, heldout=other.heldout)


def trainer_of(
    mixture: BuiltMixture,
    folder: Path,
    policy: Any = None,
    balance: BalanceOptions = DROPOUT,
    dropout: float = 0.1,
    **settings: Any,
) -> BalancedSFTTrainer:
    return BalancedSFTTrainer(
        tiny_model(dropout=dropout),
        sft_config(folder, **settings),
        mixture=mixture,
        policy=policy or Watching(),
        processing_class=tiny_tokenizer(),
        balance=balance,
    )


@pytest.mark.parametrize("settings", [{}, {"packing": True, "max_length": 256}], ids=["", "packed"])
def test_a_policy_sees_every_signal_in_a_trainer(
    held: BuiltMixture, tmp_path: Path, settings: dict[str, Any]
) -> None:
    trainer = trainer_of(held, tmp_path, max_steps=4, **settings)
    trainer.train()
    seen = {name: np.array(v) for name, v in trainer.balancer.state["seen"].items()}
    assert set(seen) == set(WHOLE) and len(seen) == 14
    filled = trainer.balancer.mixture.sizes > 0
    for name, values in seen.items():
        known = values[filled] if values.ndim == 2 else values
        assert np.isfinite(known).all(), name
    probe = trainer.engine.probe
    found = probe.measure(trainer.model, {HELDOUT_LOSS}, 4).whole[HELDOUT_LOSS]
    np.testing.assert_array_equal(found, seen[HELDOUT_LOSS])  # on the last step's weights
    rows = [[example.input_ids.tolist() for example in held.heldout[name]] for name in SUBSETS]
    mine = [[e.input_ids.tolist() for e in probe.heldout_sample(k)] for k in range(3)]
    assert mine == [[part[place] for place in (0, 1, 3)] for part in rows]


def test_measuring_it_all_leaves_the_run_as_it_was(held: BuiltMixture, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "lr_scheduler_type": "constant"}
    whole = trainer_of(held, tmp_path / "a", Watching(interval=2), **settings)
    whole.train()
    without = trainer_of(held, tmp_path / "b", Watching((), interval=2), **settings)
    without.train()
    assert_same_weights(weights(whole), weights(without))
    assert whole.balancer.stream_sha256 == without.balancer.stream_sha256


def test_a_step_is_looked_ahead_with_the_trainings_own_rate(
    held: BuiltMixture, tmp_path: Path
) -> None:
    trainer = trainer_of(held, tmp_path, Watching((LOOKAHEAD_GAIN,)), max_steps=8)
    rates = []

    def note(*_args: Any) -> None:
        rates.append(trainer.engine.probe.learning_rate())

    original = trainer.engine._decide
    trainer.engine._decide = lambda model: (note(), original(model))[1]  # type: ignore[method-assign, func-returns-value]
    trainer.train()
    assert rates == pytest.approx([0.5e-2, 0.0])  # linear decay from 1e-2
    assert trainer.balancer.state["seen"][LOOKAHEAD_GAIN] == [0.0] * 3


@pytest.mark.parametrize("name", ["a trainer", "a loop"])
def test_what_is_missing_is_refused_before_training(
    built: BuiltMixture, held: BuiltMixture, tmp_path: Path, name: str
) -> None:
    def make(mixture: BuiltMixture, policy: Any, balance: BalanceOptions = DROPOUT) -> object:
        if name == "a trainer":
            return trainer_of(mixture, tmp_path, policy, balance)
        return BalancedLoop(tiny_model(), mixture, policy, steps=2, batch_size=4, options=balance)

    losses = Watching((HELDOUT_LOSS,))
    with pytest.raises(ConfigError, match="and subset 'copy' has none; give build_mixture"):
        make(built, losses)
    without = replace(held, heldout={k: v for k, v in held.heldout.items() if k != "noise"})
    with pytest.raises(ConfigError, match="and subset 'noise' has none"):
        make(without, losses)
    with pytest.raises(ConfigError, match="is a difference between passes with dropout"):
        make(held, Watching((HELDOUT_VARIANCE,)), BalanceOptions())
    make(held, losses)
    make(built, Watching(("hidden_cosine",)))


def test_passes_with_dropout_of_a_model_without_any_are_refused(
    held: BuiltMixture, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"balance\.dropout_passes asks for .* this model has none"
    ):
        trainer_of(held, tmp_path, dropout=0.0)


def test_a_loop_looks_ahead_with_the_rate_that_it_is_told(held: BuiltMixture) -> None:
    model, policy = tiny_model(), Watching((LOOKAHEAD_GAIN, HELDOUT_LOSS), interval=1)
    with pytest.raises(ConfigError, match="give BalancedLoop"):
        BalancedLoop(model, held, policy, steps=2, batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loop = BalancedLoop(
        model,
        held,
        policy,
        steps=2,
        batch_size=4,
        learning_rate=lambda: optimizer.param_groups[0]["lr"],
    )
    for batch in loop.loader(DataCollatorForSeq2Seq(tiny_tokenizer())):
        with loop.watch(batch):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loop.step()
    assert all(gain > 1e-4 for gain in loop.balancer.state["seen"][LOOKAHEAD_GAIN])


def test_a_resume_with_other_held_out_options_is_refused(
    held: BuiltMixture, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    policy = Watching((HELDOUT_LOSS, *sorted(SPREADS)))
    whole = trainer_of(held, tmp_path, policy, **settings)
    whole.train()
    for change in ({"heldout_examples": 2}, {"dropout_passes": 3}):
        other = trainer_of(held, tmp_path, policy, replace(DROPOUT, **change), **settings)
        key = next(iter(change))
        with pytest.raises(StateError, match=f"written with another balance.{key}"):
            other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    fewer = replace(held, heldout={name: part[1:] for name, part in held.heldout.items()})
    other = trainer_of(fewer, tmp_path, policy, **settings)
    with pytest.raises(StateError, match="written with another set of held-out examples"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    same = trainer_of(held, tmp_path, policy, **settings)
    same.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same.balancer.state == whole.balancer.state
    # What is not measured does not matter.
    blind = trainer_of(held, tmp_path / "blind", Watching(()), **settings)
    blind.train()
    changed = replace(DROPOUT, heldout_examples=2, dropout_passes=None)
    again = trainer_of(held, tmp_path / "blind", Watching(()), changed, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "blind" / "checkpoint-4"))


def test_gradients_are_known_as_such() -> None:
    assert {name for name, task in WHOLE.items() if task.both_ways} == GRADIENT_SIGNALS & set(WHOLE)
