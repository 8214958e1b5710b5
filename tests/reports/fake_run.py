"""Made-up but lifelike run directories, written through the run log with its fixed event keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hbo.runlog import RunLog

EXAMS = {
    "grade-school-science": 1180,
    "arithmetic": 640,
    "ethics": 420,
    "medicine": 310,
    "law": 220,
    "physics": 150,
    "logic-puzzles": 96,
}
AWKWARD = {
    "</script><img src=x onerror=alert(1)>": 400,
    "team/german & <b>bold</b>": 300,
    "العربية": 200,
    "tab\there\x07 and \u202eevil": 100,
    "[red]markup[/red] a-very-long-name-" + "x" * 60: 50,
}


@dataclass(frozen=True)
class FakeRun:
    """What a made-up run is like."""

    policy: str = "hbo"
    seed: int = 42
    steps: int = 48
    interval: int = 6
    lag: int = 4
    draws_per_step: int = 8
    groups: int = 4
    moves: bool = True
    local: bool = True
    finished: bool = True
    accuracy: bool = True
    model: str = "smollm2-135m"
    seconds_per_step: float | None = None
    look_every: int | None = None


def many_subsets(count: int) -> dict[str, int]:
    """``count`` subsets whose sizes fall by a power law."""
    return {f"subset-{k:03d}": max(3, int(9000 / (k + 1) ** 1.1)) for k in range(count)}


def fake_run(
    folder: Path, sizes: dict[str, int] | None = None, run: FakeRun | None = None
) -> dict[str, Any]:
    """Write a run directory.

    Args:
        folder: Where; made if need be.
        sizes: Subset name -> rows.
        run: What it is like.

    Returns:
        The summary, also where the run is unfinished and has no ``summary.json``.
    """
    return _Writer(folder, sizes or EXAMS, run or FakeRun()).write()


class _Writer:
    def __init__(self, folder: Path, sizes: dict[str, int], run: FakeRun) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run = folder, run
        self.names, self.rows = list(sizes), np.array(list(sizes.values()))
        self.rng = np.random.default_rng([run.seed, *run.policy.encode()])
        self.log = RunLog(folder / "run.jsonl")
        count = len(self.names)
        shape_rng = np.random.default_rng(7)
        self.start_loss = shape_rng.uniform(1.6, 3.4, count)
        self.floor = self.start_loss * shape_rng.uniform(0.62, 0.9, count)
        self.start_accuracy = shape_rng.uniform(0.22, 0.4, count)
        self.share = self.rows / self.rows.sum()
        if run.policy == "uni":
            self.share = np.full(count, 1 / count)
        self.prior = self.share.copy()
        self.local = np.full((count, run.groups), 1 / run.groups)
        self.draws = np.zeros(count, dtype=int)
        self.tokens = np.zeros(count)
        self.tokens_per_example = shape_rng.uniform(30, 160, count)

    def config(self) -> dict[str, Any]:
        return {
            "model": self.run.model,
            "datasets": {
                name: {"data_files": f"data/{k}.jsonl"} for k, name in enumerate(self.names)
            },
            "difficulty": {"metric": "ifd", "groups": self.run.groups},
            "balance": {"policy": self.run.policy, "update_interval": self.run.interval},
            "training": {"max_steps": self.run.steps, "learning_rate": 1e-4},
            "output_dir": "runs/example",
            "seed": self.run.seed,
        }

    def heldout(self) -> np.ndarray:
        progress = 1 - np.exp(-self.draws / (0.45 * self.rows + 30))
        return self.start_loss + (self.floor - self.start_loss) * progress

    def accuracies(self) -> list[float | None]:
        progress = 1 - np.exp(-self.draws / (0.45 * self.rows + 30))
        values = np.minimum(0.95, self.start_accuracy + 0.22 * progress)
        graded = [self.run.accuracy and k != 2 for k in range(len(self.names))]
        return [round(float(v), 3) if ok else None for v, ok in zip(values, graded, strict=True)]

    def write(self) -> dict[str, Any]:
        versions = {"hbo": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "trl": "1.16.0"}
        text = yaml.safe_dump(
            {**self.config(), "versions": versions}, sort_keys=False, allow_unicode=True
        )
        (self.folder / "config.yaml").write_text(text, encoding="utf-8")
        self.log.write("start", config=self.config(), versions=versions, fingerprint="ab12" * 16)
        before = self.evaluate(0)
        steps = self.run.steps if self.run.finished else self.run.steps * 2 // 3
        pending: list[tuple[int, np.ndarray]] = []
        share = self.share
        for step in range(1, steps + 1):
            while pending and pending[0][0] < step:
                _, share = pending.pop(0)
            self.step(step, share)
            if self.run.moves and step % self.run.interval == 0 and step < self.run.steps:
                self.update(step)
                pending.append((step + self.run.lag, self.share))
            if self.run.look_every and step % self.run.look_every == 0:
                self.look(step)
        self.log.write("warning", step=7, code="passes", text=f"{self.names[-1]} passes 3 times")
        summary = self.summary(before, steps)
        if self.run.finished:
            if self.run.look_every:
                self.look(steps, at_end=True)
            self.evaluate(steps)
            self.log.write("end", summary=summary)
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=2))
        return summary

    def step(self, step: int, share: np.ndarray) -> None:
        drawn = self.rng.multinomial(self.run.draws_per_step, share)
        self.draws += drawn
        tokens = np.round(drawn * self.tokens_per_example)
        self.tokens += tokens
        loss = self.heldout() * 0.97 + self.rng.normal(0, 0.12, len(drawn))
        subsets = {
            name: {"draws": int(drawn[k]), "tokens": int(tokens[k]), "loss": float(loss[k])}
            for k, name in enumerate(self.names)
            if drawn[k]
        }
        mean = float((loss * tokens).sum() / tokens.sum())
        # As the trainers log it: draws since the run began, and per subset since the last line.
        self.log.write("step", step=step, draws=int(self.draws.sum()), loss=mean, subsets=subsets)

    def update(self, step: int) -> None:
        rewards = self.heldout() * (1 + self.rng.normal(0, 0.05, len(self.names)))
        errors = 0.03 + 0.1 / np.sqrt(1 + self.draws)
        before = self.share
        target = rewards**2 / (rewards**2).sum()
        self.share = 0.75 * before + 0.25 * target
        after = self.share
        local = {}
        new_local = self.local.copy()
        for k, name in enumerate(self.names):
            reward = 0.8 + 0.08 * np.arange(self.run.groups) + self.rng.normal(0, 0.05, 1)
            reward = reward + self.rng.normal(0, 0.03, self.run.groups)
            goal = reward**2 / (reward**2).sum()
            new_local[k] = 0.7 * self.local[k] + 0.3 * goal
            local[name] = {
                "rewards": reward.tolist(),
                "errors": [0.02 + 0.2 / np.sqrt(4 + self.draws[k])] * self.run.groups,
                "before": self.local[k].tolist(),
                "after": new_local[k].tolist(),
            }
        if self.run.local:
            self.local = new_local
        self.log.write(
            "update",
            step=step,
            effective_draw=(step + self.run.lag) * self.run.draws_per_step,
            **{"global": self.by_name(rewards=rewards, errors=errors, before=before, after=after)},
            local=local if self.run.local else {},
            seconds=1.4,
        )

    def look(self, step: int, *, at_end: bool = False) -> None:
        """An evaluation on validation examples: the trainer's on the way, or ours at the end."""
        loss = self.heldout() + (0.25 if at_end else 0.05)
        perplexity = {"perplexity": float(np.exp(loss.mean()))} if at_end else {}
        self.log.write(
            "evaluation",
            step=step,
            split="validation",
            seconds=step * (self.run.seconds_per_step or 1.0),
            subsets={name: {"loss": float(loss[k])} for k, name in enumerate(self.names)},
            macro={"loss": float(loss.mean()), **perplexity},
        )

    def by_name(self, **columns: np.ndarray) -> dict[str, dict[str, float]]:
        return {
            key: {name: float(values[k]) for k, name in enumerate(self.names)}
            for key, values in columns.items()
        }

    def evaluate(self, step: int) -> dict[str, Any]:
        loss, accuracy = self.heldout(), self.accuracies()
        graded = [a for a in accuracy if a is not None]
        subsets = {
            name: {
                "loss": float(loss[k]),
                "perplexity": float(np.exp(loss[k])),
                "accuracy": accuracy[k],
                "grading": "options" if accuracy[k] is not None else None,
                "examples": 24,
            }
            for k, name in enumerate(self.names)
        }
        macro = {
            "loss": float(loss.mean()),
            "accuracy": sum(graded) / len(graded) if graded else None,
        }
        self.log.write("evaluation", step=step, subsets=subsets, macro=macro)
        return {"subsets": subsets, "macro": macro}

    def summary(self, before: dict[str, Any], steps: int) -> dict[str, Any]:
        loss, accuracy = self.heldout(), self.accuracies()
        joint = self.share[:, None] * self.local
        return {
            "schema": 1,
            "policy": self.run.policy,
            "seed": self.run.seed,
            "steps": steps,
            "draws": int(self.draws.sum()),
            "tokens": int(self.tokens.sum()),
            "wall_seconds": 312.4,
            "training_seconds": self.run.seconds_per_step and steps * self.run.seconds_per_step,
            "balance_seconds": 17.9 if self.run.moves else 0.4,
            "stream_sha256": "9f" * 32,
            "mixture_fingerprint": "ab12" * 16,
            "data_fingerprint": "cd34" * 16,
            "probabilities": {name: joint[k].tolist() for k, name in enumerate(self.names)},
            "subsets": {
                name: {
                    "examples": int(self.rows[k]),
                    "draws": int(self.draws[k]),
                    "passes": float(self.draws[k] / self.rows[k]),
                    "never_seen": int(max(0, self.rows[k] - self.draws[k])),
                    "train_loss": float(loss[k] * 0.97) if self.draws[k] else None,
                    "holdout_loss_before": before["subsets"][name]["loss"],
                    "holdout_loss_after": float(loss[k]),
                    "holdout_accuracy_before": before["subsets"][name]["accuracy"],
                    "holdout_accuracy_after": accuracy[k],
                }
                for k, name in enumerate(self.names)
            },
            "macro_holdout_loss_before": before["macro"]["loss"],
            "macro_holdout_loss_after": float(loss.mean()),
        }


@dataclass(frozen=True)
class FakeEntry:
    """A policy of a made-up comparison: what it adds to every loss, and how it is listed."""

    name: str
    shift: float = 0.0
    group: str | None = None
    validation_shift: float | None = None
    seeds: tuple[int, ...] | None = None
    run: FakeRun = FakeRun(steps=6, interval=3, lag=1, groups=2)


def fake_comparison(
    folder: Path,
    entries: list[FakeEntry],
    seeds: tuple[int, ...] = (1, 2, 3),
    sizes: dict[str, int] | None = None,
    *,
    examples: int = 30,
    noise: float = 0.02,
    against: str = "prop",
) -> Path:
    """Write a comparison folder: ``runs.json``, run folders, ``heldout.json`` in each.

    Args:
        folder: Where.
        entries: The policies.
        seeds: Of the comparison; an entry's own ``seeds`` are those it has finished.
        sizes: Subset name -> rows.
        examples: Test and validation examples of each subset.
        noise: Standard deviation of what a seed adds to the losses of one policy.
        against: Name of the reference.
    """
    sizes = sizes or {"a": 40, "b": 10}
    listed = []
    for entry in entries:
        folders = {str(seed): f"{entry.name}/seed-{seed}" for seed in seeds}
        for seed in entry.seeds if entry.seeds is not None else seeds:
            place = folder / folders[str(seed)]
            fake_run(place, sizes, replace(entry.run, policy=entry.name, seed=seed))
            (place / "heldout.json").write_text(
                json.dumps(_heldout(entry, seed, list(sizes), examples, noise))
            )
        listed.append(
            {
                "name": entry.name,
                "policy": entry.group or entry.name,
                "settings": {"shift": entry.shift} if entry.group else {},
                "set": {},
                "of": entry.group,
                "folders": folders,
            }
        )
    manifest = {"schema": 1, "against": against, "seeds": list(seeds), "entries": listed}
    (folder / "runs.json").write_text(json.dumps(manifest))
    return folder


def _heldout(
    entry: FakeEntry, seed: int, names: list[str], examples: int, noise: float
) -> dict[str, Any]:
    of_run = np.random.default_rng([seed, *entry.name.encode()]).normal(0, noise)
    splits: dict[str, Any] = {}
    for number, half in enumerate(("validation", "test")):
        shift = entry.shift
        if half == "validation" and entry.validation_shift is not None:
            shift = entry.validation_shift
        splits[half] = {}
        for k, name in enumerate(names):
            rng = np.random.default_rng([number, k])  # the same examples in every run
            losses = np.maximum(rng.gamma(4, 0.3, examples) + 0.3 * k + shift + of_run, 0.01)
            splits[half][name] = {
                "fingerprint": f"{half}-{k}",
                "losses": losses.tolist(),
                "tokens": rng.integers(5, 80, examples).tolist(),
                "correct": None if k == 2 else (losses < 1.3).astype(int).tolist(),
                "grading": None if k == 2 else "options",
            }
    return {"schema": 1, "step": entry.run.steps, "splits": splits}
