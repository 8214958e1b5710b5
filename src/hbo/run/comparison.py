"""The runs of a comparison: each checked before any starts, and their list, ``runs.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hbo.config import LoadedConfig
from hbo.config.entries import Entry, entries_of, names_of, reference_of, refuse_secrets
from hbo.config.explain import unknown
from hbo.data.assemble import content_fingerprint
from hbo.errors import ConfigError, HBOError
from hbo.run import folder as files
from hbo.run.comparable import require_equal, require_same
from hbo.run.files import json_text, write_whole
from hbo.run.plan import Plan, plan_of
from hbo.run.prepare import Part, Prepared, prepare
from hbo.run.resume import resolved

MANIFEST = "runs.json"
PAGES = ("comparison.json", "comparison.md", "comparison.html")
SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a comparison.

    Args:
        entry: The policy.
        seed: Its seed.
        folder: Its run directory.
        loaded: Its configuration.
        resolved: The same as its ``config.yaml`` will say it, versions apart.
        steps: Optimiser steps.
    """

    entry: Entry
    seed: int
    folder: Path
    loaded: LoadedConfig
    resolved: Mapping[str, Any]
    steps: int

    @property
    def name(self) -> str:
        """The run as it is spoken of."""
        return f"{self.entry.name}, seed {self.seed}"

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether it has got to its end, and left all that a comparison reads."""
        try:
            summary = json.loads((self.folder / files.SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        done = isinstance(summary, dict) and summary.get("steps") == self.steps
        return done and (self.folder / files.HELDOUT).is_file()


@dataclass(frozen=True, eq=False)
class Planned:
    """One entry, checked.

    Args:
        entry: The policy.
        facts: What ``hbo plan`` says of its run, as JSON-safe values.
        disk: (bytes of one run's checkpoints and model, bytes of its model).
        heldout: Subset -> hash of the tokens and labels of its validation and test examples.
        runs: One for each seed.
    """

    entry: Entry
    facts: Mapping[str, Any]
    disk: tuple[int, int]
    heldout: Mapping[str, str]
    runs: tuple[Run, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every run of a comparison.

    Args:
        folder: Where all of it lies.
        against: The entry that the others are compared with.
        seeds: In order.
        before: The run directory of the run that measures the untouched model, if one does.
        planned: The entries.
    """

    folder: Path
    against: str
    seeds: tuple[int, ...]
    before: str | None
    planned: tuple[Planned, ...]
    unscored: tuple[Run, ...] = field(default=())
    """A run for each set of difficulty scores that the cache lacks."""

    @property
    def runs(self) -> list[Run]:
        """All runs, seed by seed: one that is broken off is still balanced."""
        return [entry.runs[n] for n in range(len(self.seeds)) for entry in self.planned]

    def manifest(self) -> dict[str, Any]:
        """``runs.json``."""
        return {
            "schema": SCHEMA,
            "against": self.against,
            "seeds": list(self.seeds),
            "before": self.before,
            "entries": [
                {
                    "name": planned.entry.name,
                    "policy": planned.entry.policy,
                    "settings": dict(planned.entry.settings),
                    "set": dict(planned.entry.set),
                    "of": planned.entry.of,
                    "folders": {
                        str(run.seed): run.folder.relative_to(self.folder).as_posix()
                        for run in planned.runs
                    },
                }
                for planned in self.planned
            ],
        }

    def write_manifest(self) -> None:
        """Write ``runs.json``."""
        write_whole(self.folder / MANIFEST, json_text(self.manifest()))


def plan_comparison(
    loaded: LoadedConfig,
    names: Sequence[str] | None,
    seeds: Sequence[int],
    against: str | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Check every run of a comparison; nothing is written.

    Args:
        loaded: The configuration.
        names: Of the entries; ``None``: ``names_of``.
        seeds: One run of each entry for each.
        against: The entry that the others are compared with; ``None``: ``reference_of``.
        overwrite: Runs of other settings are not in the way: they will be removed.
        progress: Told what is being read.

    Raises:
        ConfigError: An entry, a seed, or something in the way.
        DataError: The data.
    """
    refuse_secrets(loaded)
    folder = Path(loaded.config.output_dir)
    if files.holds_run(folder):
        text = f"{str(folder)!r} holds a run; a comparison needs another output_dir"
        raise loaded.error(("output_dir",), text)
    entries = entries_of(loaded, names or names_of(loaded))
    folders = {entry.name: folder / name for entry, name in _folder_names(loaded, entries)}
    groups = list(dict.fromkeys(entry.group for entry in entries))
    if against is not None and against not in groups:
        raise ConfigError(unknown(against, groups, kind="entry"), where="--against")
    places = {entry: [folders[entry] / f"seed-{seed}" for seed in seeds] for entry in folders}
    order = [places[entry.name][n] for n in range(len(seeds)) for entry in entries]
    before = _measures_before(loaded, folder, order, overwrite)
    planner = _Planner(seeds, before, overwrite, progress)
    planned = [planner.planned(entry, places[entry.name]) for entry in entries]
    require_equal(loaded, planned)
    where = None if before is None else before.relative_to(folder).as_posix()
    named = against or reference_of(entries)
    return Comparison(folder, named, tuple(seeds), where, tuple(planned), tuple(planner.unscored))


def _folder_names(loaded: LoadedConfig, entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """A folder for each entry, of a name that every file system takes."""
    found: list[tuple[Entry, str]] = []
    taken = {name.casefold() for name in (MANIFEST, *PAGES)}
    for entry in entries:
        name = "".join(one if one.isalnum() or one in "._" else "-" for one in entry.name)
        name = f"-{name[1:]}" if name.startswith(".") else name
        if name.casefold() in taken:  # some disks do not tell capitals apart
            text = f"its folder would be {name!r}, and that is taken, capitals aside; rename it"
            raise loaded.error(("policies", entry.group), text)
        taken.add(name.casefold())
        found.append((entry, name))
    return found


def _measures_before(
    loaded: LoadedConfig, folder: Path, places: Sequence[Path], overwrite: bool
) -> Path | None:
    """The run that measures the untouched model: as it was settled once, else the first."""
    if not loaded.config.evaluation.before:
        return None
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("before")
    except (OSError, ValueError, RecursionError, AttributeError):
        said = None
    if isinstance(said, str) and not overwrite:
        place = folder / said
        if place in places or _measured_the_same(loaded, place):
            return place
    return places[0]


def _measured_the_same(loaded: LoadedConfig, place: Path) -> bool:
    """Whether a finished run that is not among these has measured the model and data of these."""
    changed = files.changed_keys(loaded.config.plain(), place)
    others = ("balance", "policies", "seed", "evaluation.before", "evaluation.validation")
    return (place / files.SUMMARY).is_file() and all(key.startswith(others) for key in changed)


class _Planner:
    """Plans entries; data that they share are read once, and so are sizes of models.

    Args:
        seeds: One run of each entry for each.
        before: The run directory of the run that measures the untouched model.
        overwrite: What is there already will be removed.
        progress: Told what is being read.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        before: Path | None,
        overwrite: bool,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.unscored: list[Run] = []
        self._seeds, self._before, self._overwrite = seeds, before, overwrite
        self._progress = progress
        self._prepared: list[tuple[dict[str, Any], Prepared]] = []
        self._sizes: list[tuple[Prepared, tuple[int, int]]] = []
        self._hashes: list[tuple[tuple[Part, ...], dict[str, str]]] = []
        self._lacking: list[dict[str, Any]] = []

    def planned(self, entry: Entry, places: Sequence[Path]) -> Planned:
        """One entry, with its runs in these directories."""
        configured = [
            self._configured(entry, *where) for where in zip(self._seeds, places, strict=True)
        ]
        try:
            plan = self._plan(configured[0])
        except HBOError as error:
            text = f"{error.message} (entry {entry.name!r})"
            raise type(error)(text, where=error.where) from error
        runs = tuple(
            Run(entry, seed, place, one, resolved(one, plan), plan.budget.steps)
            for seed, place, one in zip(self._seeds, places, configured, strict=True)
        )
        if not self._overwrite:
            require_same(runs)
        if self._lacks_scores(plan):
            self.unscored.append(runs[0])
        heldout = self._heldout(plan.prepared.parts)
        return Planned(entry, _facts(plan), self._disk(plan), heldout, runs)

    def _configured(self, entry: Entry, seed: int, place: Path) -> LoadedConfig:
        """A run's configuration; one that has begun keeps what it has begun to measure."""
        measures = place == self._before
        if not self._overwrite:
            try:
                saved = yaml.safe_load((place / files.CONFIG).read_text(encoding="utf-8"))
                measures = bool(saved["evaluation"]["before"])
            except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError):
                pass
        return entry.configured(seed, str(place), measures)

    def _plan(self, loaded: LoadedConfig) -> Plan:
        """The plan of one run."""
        rest = _of_data(loaded)
        known = next((prepared for values, prepared in self._prepared if values == rest), None)
        if known is None:
            known = prepare(loaded, self._progress)
            self._prepared.append((rest, known))
        return plan_of(dataclasses.replace(known, loaded=loaded))

    def _lacks_scores(self, plan: Plan) -> bool:
        """Whether scores are lacking that no entry before this one lacked."""
        rest = _of_data(plan.prepared.loaded)
        lacks = not plan.scored and rest not in self._lacking
        if lacks:
            self._lacking.append(rest)
        return lacks

    def _heldout(self, parts: tuple[Part, ...]) -> dict[str, str]:
        """What is held out of each subset, as a hash."""
        known = next((hashes for one, hashes in self._hashes if one is parts), None)
        if known is None:
            known = {
                part.name: content_fingerprint(
                    [[e.encoded for e in half] for half in (part.validation, part.test)]
                )
                for part in parts
            }
            self._hashes.append((parts, known))
        return known

    def _disk(self, plan: Plan) -> tuple[int, int]:
        """Bytes of checkpoints and model of a run, and of its model alone."""
        settings = plan.prepared.settings
        known = next((size for one, size in self._sizes if one.settings is settings), None)
        if known is None:
            known = weights(plan.prepared)
            self._sizes.append((plan.prepared, known))
        saved, trained = known
        training = settings.training
        checkpoints = 1
        if training.save_strategy == "steps" and training.save_steps >= 1:
            checkpoints = max(1, plan.budget.steps // int(training.save_steps))
        checkpoints = min(checkpoints, training.save_total_limit or checkpoints)
        return checkpoints * (saved + 2 * trained) + saved, saved


def weights(prepared: Prepared) -> tuple[int, int]:
    """Bytes of the weights that a run saves, and of those that it trains."""
    from trl import get_peft_config

    from hbo.run.models import empty_model

    settings = prepared.settings
    model = empty_model(prepared.loaded, prepared.model, settings)
    if settings.tuning.use_peft:
        from peft import get_peft_model

        model = get_peft_model(model, get_peft_config(settings.tuning))
    sizes = [
        (item.numel() * item.element_size(), item.requires_grad) for item in model.parameters()
    ]
    trained = sum(size for size, wanted in sizes if wanted)
    return trained if settings.tuning.use_peft else sum(size for size, _ in sizes), trained


def _of_data(loaded: LoadedConfig) -> dict[str, Any]:
    """What of a configuration decides the data and their scores."""
    values = loaded.config.plain()
    for key in ("balance", "seed", "output_dir", "evaluation"):
        values.pop(key, None)
    values["difficulty"].pop("groups")
    return values


def _facts(plan: Plan) -> dict[str, Any]:
    values = plan.to_json()
    kept = ("steps", "draws_per_step", "draws", "lag", "scored", "cost", "notices", "warnings")
    return {key: values[key] for key in kept}
