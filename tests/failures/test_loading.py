"""Between the data and the model: no tokens, a dead worker, a row that is broken."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hbo.data.assemble import ID_COLUMN
from hbo.data.build import BuiltMixture
from hbo.integrations import engine
from hbo.integrations.loader import ExampleIdCollator
from hbo.runlog import read_log
from tests.failures.runs import SAVING, expect_undisturbed
from tests.integrations.conftest import Train
from tests.support.tiny import tiny_model

collate = ExampleIdCollator.__call__


@pytest.mark.parametrize("policy", ["hbo", "hbo-paper", "hbo-released", "prop"])
def test_a_subset_without_trained_tokens_is_named_and_its_reward_unknown(
    make: Train, built: BuiltMixture, monkeypatch: pytest.MonkeyPatch, policy: str
):
    def without(self: ExampleIdCollator, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(self, features)
        lost = built.mixture.subset_of(batch[ID_COLUMN].numpy()) == 1
        batch["labels"][torch.from_numpy(lost)] = -100
        return batch

    monkeypatch.setattr(ExampleIdCollator, "__call__", without)
    monkeypatch.setattr(engine, "lacking", lambda *_args: iter(()))  # nor does a probe find any
    trainer = make(policy, model=tiny_model())
    trainer.train()
    log = read_log(trainer.engine.run_log.path)
    said = [entry["text"] for entry in log if entry.get("code") == "no-tokens"]
    assert said and all(text.split(": ")[1].startswith("add") for text in said)
    updates = [entry for entry in log if entry["event"] == "update"]
    laws = np.array([list(entry["global"]["after"].values()) for entry in updates])
    assert np.isfinite(laws).all() and (laws > 0).all()
    assert laws.sum(axis=1) == pytest.approx(1)
    for entry in updates:
        assert entry["local"]["add"]["rewards"] in (None, [None] * 4)
    assert summary_of(trainer)["add"]["tokens"] == 0
    assert not np.isfinite(summary_of(trainer)["add"]["train_loss"])


def summary_of(trainer: Any) -> dict[str, Any]:
    return trainer.balance_summary()["subsets"]


def breaking(at: int, how: str) -> Any:
    """A collator that meets something dreadful in its n-th batch of a process."""
    calls = 0

    def broken(self: ExampleIdCollator, features: list[dict[str, Any]]) -> dict[str, Any]:
        nonlocal calls
        calls += ID_COLUMN in features[0]
        if calls == at and how == "dies":
            os._exit(9)
        if calls == at:
            raise ValueError("row 17 is not\nwhat it should be")
        return collate(self, features)

    return broken


@pytest.mark.parametrize(
    ("how", "workers", "text"),
    [
        ("raises", 0, "row 17 is not what it should be"),
        ("raises", 1, "row 17 is not what it should be"),
        ("dies", 1, "a loader worker died (DataLoader worker (pid"),
    ],
)
def test_a_loader_that_fails_is_one_line_and_resumes(
    workspace: Path,
    hbo,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    workers: int,
    text: str,
):
    loading = [
        *("--set", "balance.update_interval=4", "--set", "balance.lag=4"),
        *("--set", "training.dataloader_prefetch_factor=1" if workers else "seed=7"),
        *("--set", f"training.dataloader_num_workers={workers}"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(ExampleIdCollator, "__call__", breaking(4, how))
        said = hbo("train", "config.yaml", *SAVING, *loading)
    assert (said.status, said.err.count("\n")) == (1, 1), said.err
    assert text in said.err
    assert len(said.err) < 500
    said = hbo("train", "config.yaml", *SAVING, *loading, "--resume")
    assert (said.status, said.err) == (0, "")
    same = hbo("train", "config.yaml", *SAVING, *loading, "--set", "output_dir=undisturbed")
    assert same.status == 0
    # A worker's death is heard at once, even while a checkpoint is written.
    said_of_it = frozenset({"damaged-checkpoint"})
    expect_undisturbed(workspace / "run", workspace / "undisturbed", said=said_of_it)
