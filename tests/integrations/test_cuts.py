"""Real trainers: what is trained on does not depend on loaders, nor on how a batch is cut."""

from __future__ import annotations

from typing import Any

import pytest

from hbo.integrations.options import BalanceOptions
from hbo.integrations.trl import BalancedSFTTrainer
from hbo.runlog import read_log
from tests.integrations.conftest import Train, assert_same_weights, weights

STEPS = 14  # an epoch has 12
CUTS = [(8, 1), (4, 2), (1, 8)]


def cut(per_device: int, accumulation: int) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
    }


def trained(trainer: BalancedSFTTrainer) -> BalancedSFTTrainer:
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert trainer.state.epoch > 1
    return trainer


def told(trainer: BalancedSFTTrainer) -> dict[str, Any]:
    """The summary, without the time it took."""
    return {**trainer.balance_summary(), "balance_seconds": None}


def events(trainer: BalancedSFTTrainer) -> list[dict[str, Any]]:
    """The run log, without the time it took."""
    return [{**event, "seconds": None} for event in read_log(trainer.engine.run_log.path)]


def laws(trainer: BalancedSFTTrainer) -> list[Any]:
    return [
        (event["step"], event["effective_draw"], event["proposed"], event["global"]["after"])
        for event in events(trainer)
        if event["event"] == "update"
    ]


def test_a_fixed_policy_draws_the_same_however_a_batch_is_cut(make: Train) -> None:
    runs = [trained(make("prop", **cut(*shape))) for shape in CUTS]
    assert len({run.balance_summary()["stream_sha256"] for run in runs}) == 1
    assert all(laws(run) == laws(runs[0]) for run in runs)


@pytest.mark.parametrize("policy", ["hbo", "hbo-paper"])
def test_an_adaptive_run_is_replayed_in_another_cut(make: Train, policy: str) -> None:
    first = trained(make(policy, **cut(8, 1)))
    moved = [after for *_, after in laws(first)]
    assert moved[0] != moved[-1]
    recorded = {"run": first.engine.run_log.path}
    for shape in CUTS[1:]:
        again = trained(make("replay", policy_fields=recorded, **cut(*shape)))
        assert laws(again) == laws(first)
        ours, theirs = again.balance_summary(), first.balance_summary()
        for key in ("stream_sha256", "probabilities", "draws", "tokens"):
            assert ours[key] == theirs[key]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores
def test_loader_workers_and_prefetching_change_nothing(make: Train) -> None:
    def run(workers: int, prefetch: int | None, **settings: Any) -> BalancedSFTTrainer:
        settings |= {"dataloader_num_workers": workers, "dataloader_prefetch_factor": prefetch}
        lag = {"balance": BalanceOptions(lag=6)}
        return trained(make("hbo", trainer=lag, **cut(4, 2), **settings))

    reference = run(0, None)
    for workers, prefetch in ((2, 1), (2, 5), (4, 2)):
        other = run(workers, prefetch)
        assert other.args.dataloader_prefetch_factor == prefetch
        assert told(other) == told(reference)
        assert events(other) == events(reference)
        assert_same_weights(weights(other), weights(reference))
