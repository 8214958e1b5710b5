"""Read a comparison: its manifest, the finished runs, and which setting of each group is reported.

Of a group of settings only validation numbers are used, until one of them is chosen: the test
numbers of the others, though they stand in the same files, go into nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hbo.errors import DataError
from hbo.reports.reading import read_run
from hbo.reports.record import FloatArray, RunRecord

MANIFEST = "runs.json"


@dataclass(frozen=True)
class Rows:
    """The held-out examples of one subset: (n,) nats per token, tokens, and right or wrong.

    ``fingerprint`` is a hash of the examples; None in a run made before it was kept.
    """

    losses: FloatArray
    tokens: FloatArray
    correct: FloatArray | None
    fingerprint: str | None

    @property
    def loss(self) -> float:
        """Nats per token over all examples."""
        return float(self.losses @ self.tokens / self.tokens.sum())


@dataclass(frozen=True)
class Entry:
    """One line of the manifest: a policy with settings, and a run folder for each seed."""

    name: str
    policy: str
    settings: Mapping[str, Any]
    changes: Mapping[str, Any]
    group: str | None
    folders: Mapping[int, Path]

    @property
    def label(self) -> str:
        """The name it is reported under: its group's, where it is one setting of several."""
        return self.group or self.name


@dataclass(frozen=True)
class Run:
    """A finished run: what it says of itself, and its test examples by subset."""

    record: RunRecord
    test: Mapping[str, Rows]


@dataclass(frozen=True)
class Setting:
    """One setting of a group.

    Args:
        entry: Its line of the manifest.
        losses: Validation macro loss by seed; not finite where there is none or it diverged.
        seeds: Those that the settings are compared on, as far as this one has them.
        chosen: Whether it is reported.
    """

    entry: Entry
    losses: Mapping[int, float]
    seeds: tuple[int, ...]
    chosen: bool

    @property
    def finished(self) -> int:
        """How many seeds have a number."""
        return len(_finished(self.losses))


@dataclass(frozen=True)
class Reported:
    """A policy of the tables: the entry that stands for it, and its finished runs by seed."""

    entry: Entry
    runs: Mapping[int, Run]

    @property
    def label(self) -> str:
        """The name it is reported under."""
        return self.entry.label


@dataclass(frozen=True)
class ComparisonFolder:
    """What a comparison holds so far.

    Args:
        folder: Where it lies.
        against: Label of the policy that the others are compared with.
        seeds: All seeds, run or not.
        policies: Those with a finished run, in the manifest's order.
        subsets: Those that every run was tested on, in the configuration's order.
        choices: Group -> its settings.
        before: The run that measured the untouched model; None where there is none.
        missing: (label, seed) of every run that is not finished, or whose numbers are none.
        warnings: What a reader must know about the runs.
    """

    folder: Path
    against: str
    seeds: tuple[int, ...]
    policies: tuple[Reported, ...]
    subsets: tuple[str, ...]
    choices: Mapping[str, Sequence[Setting]]
    before: RunRecord | None
    missing: tuple[tuple[str, int], ...]
    warnings: list[str] = field(default_factory=list)


def read_comparison(folder: Path | str) -> ComparisonFolder:
    """Read a comparison folder, finished or not.

    Args:
        folder: What ``hbo compare`` writes into, with ``runs.json``.

    Raises:
        DataError: There is no manifest, something is damaged, or runs were measured on other
            examples than the rest.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    entries = [_entry(folder, entry) for entry in manifest["entries"]]
    warnings: list[str] = []
    choices = {
        label: _choose([entry for entry in entries if entry.group == label])
        for label in dict.fromkeys(entry.group for entry in entries)
        if label is not None
    }
    seeds = tuple(int(seed) for seed in manifest["seeds"])
    policies, missing = [], []
    for entry in _shown(entries, choices, seeds, warnings):
        runs = {seed: run for seed in seeds if (run := _run(entry, seed, warnings)) is not None}
        missing += [(entry.label, seed) for seed in seeds if seed not in runs]
        if runs:
            policies.append(Reported(entry, runs))
    _check_examples(policies)
    before = manifest.get("before")
    return ComparisonFolder(
        folder=folder,
        against=str(manifest.get("against") or ""),
        seeds=seeds,
        policies=tuple(policies),
        subsets=_subsets(policies),
        choices=choices,
        before=_before(folder / before) if isinstance(before, str) else None,
        missing=tuple(missing),
        warnings=warnings,
    )


# --- the manifest ---------------------------------------------------------------------------------


def _manifest(folder: Path) -> Mapping[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"no comparison here: {MANIFEST} is missing; give the output_dir of `hbo compare`",
            where=str(folder),
        )
    manifest = _json(path)
    if not (isinstance(manifest.get("entries"), list) and isinstance(manifest.get("seeds"), list)):
        raise DataError("needs entries and seeds; run `hbo compare` again", where=str(path))
    return manifest


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON ({error}); run it again", where=str(path)) from None
    if not isinstance(value, dict):
        raise DataError("must be a JSON object; run it again", where=str(path))
    return value


def _entry(folder: Path, value: Any) -> Entry:
    try:
        return Entry(
            name=str(value["name"]),
            policy=str(value["policy"]),
            settings=dict(value.get("settings") or {}),
            changes=dict(value.get("set") or {}),
            group=None if value.get("of") is None else str(value["of"]),
            folders={int(seed): folder / path for seed, path in value["folders"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            "each entry needs name, policy and folders (seed -> folder); run `hbo compare` again",
            where=str(folder / MANIFEST),
        ) from None


# --- the choice among settings --------------------------------------------------------------------


def _choose(entries: Sequence[Entry]) -> tuple[Setting, ...]:
    """Mark the setting with the lowest mean validation loss, of those with the most seeds.

    A seed counts where it has a number, so that a setting whose training was lost or diverged is
    not chosen on the seeds that went well. Among equals the first stands. Where the settings with
    the most seeds have none in common, none is chosen.
    """
    losses = [
        {seed: _validation(path) for seed, path in entry.folders.items()} for entry in entries
    ]
    finished = [_finished(row) for row in losses]
    most = max(map(len, finished))
    common = set.intersection(*(seeds for seeds in finished if len(seeds) == most))
    means = [
        math.fsum(row[seed] for seed in common) if len(seeds) == most else math.inf
        for row, seeds in zip(losses, finished, strict=True)
    ]
    best = means.index(min(means)) if common else -1
    return tuple(
        Setting(entry, row, tuple(s for s in row if s in seeds & common), chosen=place == best)
        for place, (entry, row, seeds) in enumerate(zip(entries, losses, finished, strict=True))
    )


def _finished(losses: Mapping[int, float]) -> set[int]:
    return {seed for seed, loss in losses.items() if math.isfinite(loss)}


def _validation(folder: Path) -> float:
    """Validation macro loss of a run; not finite where there is none or it diverged."""
    rows = _heldout(folder, "validation")
    return sum(row.loss for row in rows.values()) / len(rows) if rows else math.nan


def _shown(
    entries: Sequence[Entry],
    choices: Mapping[str, Sequence[Setting]],
    seeds: Sequence[int],
    warnings: list[str],
) -> list[Entry]:
    chosen = {label: [s for s in settings if s.chosen] for label, settings in choices.items()}
    for label, settings in choices.items():
        warnings += _of_choice(label, settings, chosen[label], len(seeds))
    shown = [setting.entry for some in chosen.values() for setting in some]
    return [entry for entry in entries if entry.group is None or entry in shown]


def _of_choice(
    label: str, settings: Sequence[Setting], chosen: Sequence[Setting], seeds: int
) -> list[str]:
    if not chosen:
        return [
            f"{label}: no setting is chosen yet, since those of its {len(settings)} settings with "
            "the most finished seeds have none in common; it is in no table"
        ]
    said, best = [], chosen[0]
    if len(best.seeds) < seeds:
        named = ", ".join(map(str, best.seeds))
        said.append(
            f"{label}: its setting was chosen on {len(best.seeds)} of {seeds} seeds ({named})"
        )
    behind = [s for s in settings if s.finished < best.finished]
    if behind:
        named = ", ".join(f"{s.entry.name} ({s.finished} of {seeds})" for s in behind)
        said.append(
            f"{label}: settings with fewer finished seeds than the chosen one (training was lost, "
            f"diverged, or is not done) could not be chosen: {named}"
        )
    return said


# --- runs -----------------------------------------------------------------------------------------


def _run(entry: Entry, seed: int, warnings: list[str]) -> Run | None:
    folder = entry.folders.get(seed)
    if folder is None or not (folder / "summary.json").is_file():
        return None
    test = _heldout(folder, "test")
    if not test:
        return None
    wrong = [name for name, rows in test.items() if not np.isfinite(rows.losses).all()]
    if wrong:
        warnings.append(
            f"{entry.label}, seed {seed}, diverged (no number for the loss on {', '.join(wrong)}) "
            "and is left out of every number: this flatters the policy"
        )
        return None
    return Run(read_run(folder, steps=False), test)


def _heldout(folder: Path, half: str) -> dict[str, Rows]:
    path = folder / "heldout.json"
    if not path.is_file():
        return {}
    splits = _json(path).get("splits")
    found = splits.get(half) if isinstance(splits, dict) else None
    try:
        rows = {name: _rows(row) for name, row in (found or {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            "needs losses, tokens and correct of each subset, as many of each as there are "
            "examples; run this seed again",
            where=str(path),
        ) from None
    return {name: row for name, row in rows.items() if len(row.losses)}


def _rows(row: Mapping[str, Any]) -> Rows:
    losses = np.array(row["losses"], dtype=float)  # null becomes NaN
    tokens = np.array(row["tokens"], dtype=float)
    correct = None if row["correct"] is None else np.array(row["correct"], dtype=float)
    if losses.shape != tokens.shape or (correct is not None and correct.shape != tokens.shape):
        raise ValueError
    if not (tokens > 0).all():
        raise ValueError
    fingerprint = row.get("fingerprint")
    return Rows(losses, tokens, correct, None if fingerprint is None else str(fingerprint))


def _subsets(policies: Sequence[Reported]) -> tuple[str, ...]:
    if not policies:
        return ()
    first = next(iter(policies[0].runs.values()))
    return tuple(sorted(first.test, key=[*first.record.subsets, *first.test].index))


def _check_examples(policies: Sequence[Reported]) -> None:
    runs = [run for policy in policies for run in policy.runs.values()]
    for run in runs[1:]:
        other = _other_examples(runs[0].test, run.test)
        if other is not None:
            raise DataError(
                f"was tested on other examples than {runs[0].record.folder} (subset {other!r}); "
                "compare runs of one configuration's data",
                where=str(run.record.folder),
            )


def _other_examples(one: Mapping[str, Rows], other: Mapping[str, Rows]) -> str | None:
    """The first subset whose examples are not the same; None where all are."""
    names = [*one, *(name for name in other if name not in one)]
    return next(
        (
            name
            for name in names
            if name not in one or name not in other or not _same(one[name], other[name])
        ),
        None,
    )


def _same(one: Rows, other: Rows) -> bool:
    known = one.fingerprint is not None and other.fingerprint is not None
    return (
        np.array_equal(one.tokens, other.tokens)
        and (one.correct is None) == (other.correct is None)
        and (one.fingerprint == other.fingerprint or not known)
    )


def _before(folder: Path) -> RunRecord | None:
    return read_run(folder) if (folder / "run.jsonl").is_file() else None
