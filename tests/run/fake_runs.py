"""Runs of a comparison that train nothing: processes that write what a run leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hbo.config import load_config


def leave_run(config: Path, **changes: Any) -> Path:
    """What a finished ``hbo train`` of this file leaves, as far as a comparison looks."""
    loaded = load_config(config)
    folder, steps = Path(loaded.config.output_dir), loaded.config.training["max_steps"]
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {**loaded.config.plain(), "versions": {"hbo": "0"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    times = {"wall_seconds": 10.0, "balance_seconds": 2.0, "draws": 2 * steps}
    (folder / "summary.json").write_text(json.dumps({"steps": steps, **times, **changes}))
    (folder / "heldout.json").write_text("{}")
    events = [
        {"event": "step", "step": steps, "loss": 2.0},
        {"event": "evaluation", "split": "validation", "macro": {"loss": 1.5}},
        {"event": "evaluation", "split": "test", "macro": {"loss": 9.0}},
    ]
    (folder / "run.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    (folder / "model").mkdir(exist_ok=True)
    (folder / "checkpoint-4").mkdir(exist_ok=True)
    return folder


class FakeChild:
    """A process that ends at the second look, or a while after it was told to."""

    def __init__(self, end: Callable[[], int], wait: bool = False) -> None:
        self._end, self._wait = end, wait
        self._looks = 0
        self.slow = 0
        """Looks more that it takes to end after a signal."""
        self.signals: list[int] = []
        self.status: int | None = None

    def poll(self) -> int | None:
        self._looks += 1
        if self.status is None and self.signals and self._looks > 5 + self.slow:
            self.status = 128 + self.signals[0]
        elif self.status is None and self._looks > 1 and not self._wait:
            self.status = self._end()
        return self.status

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class FakeLauncher:
    """In the place of ``hbo.run.fleet.launch``; remembers what it started.

    Args:
        failing: Part of a command -> exit status and last line of what fails.
        waiting: Processes end only when they are told to.
    """

    def __init__(
        self, failing: Mapping[str, tuple[int, str]] | None = None, waiting: bool = False
    ) -> None:
        self.failing, self.waiting = failing or {}, waiting
        self.started: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []
        self.children: list[FakeChild] = []

    def __call__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> FakeChild:
        self.started.append(list(arguments))
        self.environments.append(environment)
        child = FakeChild(lambda: self._end(list(arguments), log), self.waiting)
        self.children.append(child)
        return child

    def _end(self, arguments: list[str], log: Path) -> int:
        found = [what for part, what in self.failing.items() if part in " ".join(arguments)]
        with log.open("a") as file:
            file.write(f"a line\n{found[0][1]}\n" if found else "a line\n")
        if found:
            return found[0][0]
        if arguments[0] == "train":
            leave_run(Path(arguments[1]))
        return 0

    @property
    def trained(self) -> list[str]:
        """Configuration files of the trainings, in order."""
        return [words[1] for words in self.started if words[0] == "train"]
