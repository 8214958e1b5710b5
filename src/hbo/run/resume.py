"""Going on with a run: whether it is finished, whose it is, and from which checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hbo.config import LoadedConfig
from hbo.errors import EnvironmentProblem, StateError
from hbo.integrations.checkpoints import Checkpoint, holds_sealed, newest_checkpoint
from hbo.run import folder as files
from hbo.run.cut import configured_cut, keep_global_batch
from hbo.run.plan import Plan, plan_of
from hbo.run.prepare import prepare
from hbo.run.progress import say
from hbo.run.ranks import all_ranks
from hbo.run.world import is_main, world_size


@dataclass(frozen=True, eq=False)
class Planned:
    """What a run will do.

    Args:
        plan: As ``hbo plan`` shows it, with the batch as it is cut now.
        configured: The batch as configured (``configured_cut``).
        recut: A notice where a resume cuts it otherwise.
    """

    plan: Plan
    configured: Mapping[str, Any]
    recut: str | None


def planned(loaded: LoadedConfig, resumed: Path | None) -> Planned:
    """Plan a run; one that goes on keeps its global batch.

    Args:
        loaded: The configuration.
        resumed: The folder of the run that goes on, if one does.
    """
    prepared = prepare(loaded, say)
    training = prepared.settings.training
    configured, recut = configured_cut(training), None
    if resumed is not None:
        saved = left_by_clock(newest_checkpoint(resumed)[0])
        recut = keep_global_batch(training, saved, world_size())
    return Planned(plan_of(prepared), configured, recut)


def left_by_clock(checkpoint: Checkpoint | None) -> Mapping[str, Any]:
    """What ``ClockCallback`` left in a checkpoint."""
    from hbo.run.callbacks import CLOCK_KEY

    found = {} if checkpoint is None else checkpoint.callbacks.get(CLOCK_KEY)
    return found if isinstance(found, dict) else {}


def finished_summary(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """The summary of a run that got to its last step; all ranks ask together.

    Raises:
        EnvironmentProblem: Some ranks see a finished run there, and others do not.
    """
    try:
        summary = json.loads((folder / files.SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        summary = None
    done = isinstance(summary, dict) and summary.get("steps") == plan.budget.steps

    def fill(values: Any) -> None:
        values[0] = float(done)

    ranks = all_ranks()
    found = ranks.combine(1, fill)[0]
    if not np.isclose(found, 0.0) and not np.isclose(found, ranks.world_size):
        raise EnvironmentProblem(
            "some ranks see a finished run here and others do not; put output_dir on a disk that "
            "all of them share",
            where=str(folder),
        )
    return summary if done else None


def resolved(loaded: LoadedConfig, plan: Plan) -> dict[str, Any]:
    """The configuration with what was decided for the user."""
    config = loaded.config.plain()
    config["balance"]["lag"] = plan.lag
    return config


def require_same(loaded: LoadedConfig, plan: Plan, folder: Path) -> None:
    """Refuse to pass a finished run of another configuration off as this one's.

    Raises:
        ConfigError: The folder's run was begun with other settings.
    """
    changed = files.changed_keys(resolved(loaded, plan), folder)
    if changed:
        shown = ", ".join(changed[:5])
        raise loaded.error(
            ("output_dir",),
            f"{str(folder)!r} holds a finished run of another configuration ({shown}); set another"
            " output_dir, or replace it with --overwrite",
        )


def claim(
    folder: Path, training: Any, *, resume: bool, overwrite: bool
) -> tuple[Checkpoint | None, list[str]]:
    """Make the folder this run's: empty it, or find the checkpoint to go on from.

    Args:
        folder: The run's.
        training: ``SFTConfig``.
        resume: Go on where there is something to go on from.
        overwrite: Empty it.

    Returns:
        The checkpoint, and a line on each damaged one that was passed over.

    Raises:
        StateError: Every checkpoint of a run that goes on is damaged: nothing is removed.
    """
    checkpoint: Checkpoint | None = None
    damaged: list[str] = []
    with training.main_process_first(desc="output folder"):
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            files.sweep(folder)
        if resume:
            checkpoint, damaged = newest_checkpoint(folder)
            if checkpoint is None and holds_sealed(folder):
                raise StateError(
                    f"no checkpoint is whole any more: {'; '.join(damaged)}; restore one, or begin "
                    "anew with --overwrite",
                    where=str(folder),
                )
        if is_main() and checkpoint is None and (overwrite or resume):
            files.clear(folder)
    return checkpoint, damaged


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the system lets go of it when this one dies.

    Raises:
        EnvironmentProblem: Another process is at work there.
    """
    if not is_main():
        yield
        return
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EnvironmentProblem(
            "another process is at work on this run; wait for it, or stop it", where=str(folder)
        ) from None
    try:
        yield
    finally:
        lock.release()
