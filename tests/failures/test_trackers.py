"""A tracker that is down must not end a run, nor change it."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from hbo.run.stop import Interrupted
from tests.failures.runs import expect_undisturbed, warnings

MOMENTS = ("on_train_begin", "on_step_end", "on_log", "on_save", "on_train_end")


def tracker(moment: str, error: BaseException) -> type[TrainerCallback]:
    """A tracker whose server goes away at this moment; it counts what it is told afterwards."""

    class Down(TrainerCallback):
        told: ClassVar[list[str]] = []

    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        Down.told.append(moment)
        raise error

    def note(self: Any, *args: Any, **kwargs: Any) -> None:
        Down.told.append("other")

    for name in MOMENTS:
        setattr(Down, name, fail if name == moment else note)
    return Down


def install(monkeypatch: pytest.MonkeyPatch, kind: type[TrainerCallback]) -> list[str]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "flyte", kind)
    return ["--set", "training.report_to=[flyte]"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_tracker_that_fails_is_switched_off_and_said(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch, moment: str
):
    kind = tracker(moment, ConnectionError("no route to\nhost"))
    said = hbo("train", "config.yaml", *install(monkeypatch, kind))
    assert said.status == 0
    assert kind.told.count(moment) == 1
    assert kind.told[-1] == moment  # nothing after it
    assert said.err.count("\n") == 1
    text = "the tracker flyte failed and is switched off (ConnectionError: no route to?host)"
    assert text in said.err
    assert warnings(workspace / "run").count("tracker") == 1


def test_a_run_with_a_failing_tracker_is_the_run_without(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    assert hbo("train", "config.yaml", "--set", "output_dir=whole").status == 0
    down = install(monkeypatch, tracker("on_log", ValueError("bad key")))
    assert hbo("train", "config.yaml", *down).status == 0
    expect_undisturbed(workspace / "run", workspace / "whole", said=frozenset({"tracker"}))


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (Interrupted(15, "at once"), 143)]
)
def test_an_interrupt_inside_a_tracker_gets_through(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
):
    said = hbo("train", "config.yaml", *install(monkeypatch, tracker("on_log", error)))
    assert said.status == status
    assert "tracker" not in warnings(workspace / "run")
