"""Memory that runs out: a probe shrinks, a training step says what to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from hbo.integrations.trl import BalancedSFTTrainer
from hbo.measure.probe import Probe
from tests.failures.runs import SAVING, events, summary, warnings

PROBING = ["--set", "balance.signals=probe", "--set", "balance.probe_examples=4"]


@contextmanager
def room_for(monkeypatch: pytest.MonkeyPatch, rows: int) -> Iterator[None]:
    """While a probe measures, no batch of more rows fits."""
    measure, forward = Probe.measure, LlamaModel.forward
    probing = False

    def probe(self: Probe, *args: Any, **kwargs: Any) -> Any:
        nonlocal probing
        probing = True
        try:
            return measure(self, *args, **kwargs)
        finally:
            probing = False

    def narrow(self: LlamaModel, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        if probing and len(input_ids) > rows:
            raise torch.OutOfMemoryError(f"{len(input_ids)} rows")
        return forward(self, input_ids, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "measure", probe)
        patch.setattr(LlamaModel, "forward", narrow)
        yield


@pytest.mark.parametrize("policy", ["hbo", "hbo-paper"])
def test_a_probe_that_runs_out_of_memory_shrinks_and_goes_on(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch, policy: str
):
    chosen = [*SAVING, *PROBING, "--set", f"balance.policy={policy}"]
    with room_for(monkeypatch, 1):
        said = hbo("train", "config.yaml", *chosen)
    assert said.status == 0, said.err
    assert said.err.startswith("warning: step ")
    assert (said.err.count("\n"), "out of memory in a probe of " in said.err) == (1, True)
    assert "probe-memory" in warnings(workspace / "run")
    assert hbo("train", "config.yaml", *chosen, "--set", "output_dir=roomy").status == 0
    assert "probe-memory" not in warnings(workspace / "roomy")
    ours, theirs = (
        [update["global"]["rewards"] for update in events(workspace / run, "update")]
        for run in ("run", "roomy")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    one, other = (summary(workspace / run)["stream_sha256"] for run in ("run", "roomy"))
    assert one == other


def test_a_probe_without_room_for_one_example_stops_and_resumes(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    with room_for(monkeypatch, 0):
        said = hbo("train", "config.yaml", *SAVING, *PROBING)
    assert said.status == 1
    assert said.err.splitlines()[-1].startswith("error: ")
    assert "out of memory" in said.err.splitlines()[-1]
    assert hbo("train", "config.yaml", *SAVING, *PROBING, "--resume").status == 0


def test_a_step_that_runs_out_of_memory_says_what_to_lower(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(BalancedSFTTrainer, "training_step", full)
        said = hbo("train", "config.yaml", *SAVING)
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "out of memory; lower training.per_device_train_batch_size" in said.err
