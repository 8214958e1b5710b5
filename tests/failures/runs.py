"""What a run left behind, to be compared with one that nothing happened to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

SAVING = ["--set", "training.save_steps=2", "--set", "balance.top_up=9"]
"""Four steps with a checkpoint in the middle, and a probe at each update."""
MEASURED_TIME = {
    "wall_seconds",
    "training_seconds",
    "balance_seconds",
    "seconds",
    "scoring_seconds",
}


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The run log, or its events of one kind; every line must be whole."""
    found = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]
    return [event for event in found if kind in (None, event["event"])]


def warnings(run: Path) -> list[str]:
    """The codes of the run log's warnings."""
    return [event["code"] for event in events(run, "warning")]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def timeless(value: Any) -> Any:
    """Without what a clock measured and what the run was asked for."""
    if isinstance(value, dict):
        left_out = MEASURED_TIME | {"config"}
        return {key: timeless(item) for key, item in value.items() if key not in left_out}
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return value


def expect_undisturbed(run: Path, whole: Path, *, said: frozenset[str] = frozenset()) -> None:
    """The same summary, log (but for warnings on what happened) and weights, bit for bit."""
    assert timeless(summary(run)) == timeless(summary(whole))
    logs = [
        [timeless(event) for event in events(folder) if event.get("code") not in said]
        for folder in (run, whole)
    ]
    assert logs[0] == logs[1]
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == value).all() for name, value in theirs.items())
