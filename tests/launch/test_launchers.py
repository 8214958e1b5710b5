"""torchrun and accelerate launch run ``hbo train`` as it is: one voice, one folder, one stream."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.launch.conftest import ACCELERATE, HALVES, STEPS, Workspace

pytestmark = pytest.mark.process


def test_two_ranks_of_torchrun_train_on_what_one_does(workspace: Workspace, whole: str) -> None:
    said = workspace.launch("two", *HALVES)
    assert (said.status, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines.count(f"training: {STEPS} steps of 4 examples") == 1
    assert lines[-1] == "report: two/report.html"
    assert len(lines) == len(set(filter(None, lines))) + lines.count("")  # nothing is said twice
    ours, theirs = workspace.summary("two"), workspace.summary(whole)
    assert ours["stream_sha256"] == theirs["stream_sha256"]
    assert ours["probabilities"] == theirs["probabilities"]
    for name, subset in ours["subsets"].items():
        assert subset["draws"] == theirs["subsets"][name]["draws"]
        # The losses of both ranks are in it; one rank's alone would be far off.
        assert subset["train_loss"] == pytest.approx(theirs["subsets"][name]["train_loss"], 1e-3)
    assert workspace.story("two") == workspace.story(whole)
    one, other = (
        load_file(workspace.folder / name / "model" / "model.safetensors")
        for name in ("two", whole)
    )
    assert all(((one[key] - other[key]).abs() < 1e-4).all() for key in one)


def test_accelerate_launches_an_adaptive_run(workspace: Workspace) -> None:
    # With batches that Accelerate splits: the configured size is that of both ranks.
    arguments = ("balance.policy=hbo", "balance.update_interval=2", "training.max_steps=6")
    arguments += ("training.accelerator_config={split_batches: true}",)
    settings = [word for each in arguments for word in ("--set", each)]
    said = workspace.launch("accelerated", *settings, launcher=ACCELERATE)
    assert (said.status, said.err) == (0, "")
    assert said.out.count("training: 6 steps of 4 examples") == 1
    events = workspace.events("accelerated")
    assert [e["step"] for e in events if e["event"] == "update"] == [0, 2, 4, 6]
    assert [e["draws"] for e in events if e["event"] == "step"] == [8, 16, 24]
    assert [e["event"] for e in events if e["event"] in ("start", "end")] == ["start", "end"]


def test_bad_input_is_told_once(workspace: Workspace) -> None:
    said = workspace.launch("bad", "--set", "balance.policy=hbb")
    assert said.status == 1  # torchrun's own, after its report on stderr
    assert said.err.count("error: ") == 1
    assert "balance.policy" in said.err
    assert not (workspace.folder / "bad").exists()
