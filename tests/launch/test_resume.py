"""A run stopped on some ranks goes on on others: one stream, one log, no event twice."""

from __future__ import annotations

import pytest

from tests.launch.conftest import HALVES, STEPS, Workspace, kill_after, terminate_after

pytestmark = pytest.mark.process


def expect_the_same(workspace: Workspace, name: str, whole: str) -> None:
    """The stream, the draws and the story of the run that nothing stopped."""
    ours, theirs = workspace.summary(name), workspace.summary(whole)
    for key in ("stream_sha256", "draws", "steps", "tokens", "probabilities"):
        assert ours[key] == theirs[key], key
    assert workspace.story(name) == workspace.story(whole)


def test_two_ranks_that_a_scheduler_stops_go_on_as_one(workspace: Workspace, whole: str) -> None:
    # With loader workers, to which torchrun passes the signal on as well.
    loading = ("--set", "training.dataloader_num_workers=1")
    said = workspace.launch("stopped", *HALVES, *loading, interrupt=terminate_after(4))
    assert said.err.count("stopped: SIGTERM; checkpoint at step ") == 1
    assert "error: " not in said.err
    assert not (workspace.folder / "stopped" / "summary.json").exists()
    said = workspace.alone("stopped", *HALVES, *loading, "--resume")
    assert (said.status, said.err) == (0, "")
    notice = "a step goes on drawing 4 examples: 2 micro-batches of 2 on each of 1 ranks"
    assert f"notice: {notice}" in said.out.splitlines()
    expect_the_same(workspace, "stopped", whole)
    warnings = workspace.warnings("stopped")
    assert warnings.pop("other-ranks") == notice
    assert warnings == {"stopped": "stopped by SIGTERM"}


def test_one_rank_goes_on_as_two_and_after_a_kill_as_one(workspace: Workspace, whole: str) -> None:
    workspace.broken_off("grown", whole, 8)
    said = workspace.launch("grown", "--resume", interrupt=kill_after(12))
    notice = "a step goes on drawing 4 examples: 1 micro-batches of 2 on each of 2 ranks"
    assert f"notice: {notice}" in said.out.splitlines()
    assert "continuing from step 8" in said.out.splitlines()
    said = workspace.alone("grown", "--resume")
    assert (said.status, said.err) == (0, "")
    expect_the_same(workspace, "grown", whole)
    assert workspace.warnings("grown") == {"other-ranks": notice}  # one rank is as it began


def test_three_ranks_that_cannot_share_a_step_change_its_size(
    workspace: Workspace, whole: str
) -> None:
    workspace.broken_off("thirds", whole, 20)
    said = workspace.launch("thirds", "--resume", ranks=3)
    size = "a step draws 12 examples now, 4 before the resume"
    assert (said.status, said.err) == (0, f"warning: step 20: {size}\n")
    notice = "4 examples of a step cannot be dealt to 3 ranks; its size changes"
    assert f"notice: {notice}" in said.out.splitlines()
    assert workspace.warnings("thirds") == {"other-ranks": notice, "global-batch": size}
    steps = [e["draws"] for e in workspace.events("thirds") if e["event"] == "step"]
    assert steps == [*range(8, 81, 8), 104, 128]
    # The first draws of the longer stream are those of the run that it goes on from.
    assert workspace.summary("thirds")["draws"] == 80 + 4 * 12
    assert workspace.story("thirds")[:12] == workspace.story(whole)[:12]


def test_another_batch_in_the_configuration_is_taken(workspace: Workspace, whole: str) -> None:
    workspace.broken_off("changed", whole, 20)
    said = workspace.alone("changed", "--resume", *HALVES)
    size = "a step draws 2 examples now, 4 before the resume"
    assert (said.status, said.err) == (0, f"warning: step 20: {size}\n")
    assert workspace.warnings("changed") == {
        "changed-settings": "resumed with other settings than it was begun with: "
        "training.per_device_train_batch_size",
        "global-batch": size,
    }
    summary = workspace.summary("changed")
    assert (summary["steps"], summary["draws"]) == (STEPS, 80 + 4 * 2)
