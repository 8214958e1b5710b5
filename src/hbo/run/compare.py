"""``hbo compare``: policies x seeds from one configuration, run by run, and the page after each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence

import yaml

from hbo.errors import ConfigError, EnvironmentProblem
from hbo.integrations.checkpoints import checkpoints_in
from hbo.run import folder as files
from hbo.run.comparison import MANIFEST, PAGES, Comparison, Run
from hbo.run.files import write_whole
from hbo.run.fleet import Failure, Fleet, Launch, Tell, launch
from hbo.run.resume import alone_in
from hbo.run.stop import StopRequest


def run_comparison(
    comparison: Comparison,
    places: Sequence[Mapping[str, str]],
    stop: StopRequest,
    *,
    tell: Tell,
    watch: Callable[[Fleet], None] = lambda fleet: None,
    keep_models: bool = False,
    launch: Launch = launch,
) -> None:
    """Make the runs of a comparison that are not finished, and write the comparison after each.

    Args:
        comparison: What to run; nobody else is at work on it.
        places: ``slots``.
        stop: Hears signals.
        tell: Told what happens, in lines.
        watch: Called several times a second.
        keep_models: Keep the weights of the runs that finish now; what an earlier call kept stays.
        launch: Starts a process.

    Raises:
        HBOError: Some runs failed; the others are finished.
        Interrupted: A signal came.
    """
    comparison.write_manifest()
    waiting = [run for run in comparison.runs if not run.finished]
    for run in comparison.runs:
        write_run_config(run)
    if len(waiting) < len(comparison.runs):
        tell(f"{len(comparison.runs) - len(waiting)} of {len(comparison.runs)} runs are finished")

    def finished(run: Run) -> str | None:
        if not run.finished:
            return f"{run.folder} has no {files.HELDOUT} of its end; remove it, to make it anew"
        if not keep_models:
            remove_models(run)
        write_results(comparison, tell)
        return None

    if len(places) > 1 and waiting:
        # Runs that start together would score the same examples side by side.
        _score(comparison.unscored, places, stop, tell, watch, launch)
    fleet = Fleet(waiting, places, stop, tell=tell, watch=watch, finished=finished, launch=launch)
    fleet.go()
    if len(fleet.failed) < len(comparison.runs):
        write_results(comparison, tell, last=True)
    if fleet.failed:
        raise _failure(fleet.failed, f"of {len(comparison.runs)} runs failed")


def _score(
    runs: Sequence[Run],
    places: Sequence[Mapping[str, str]],
    stop: StopRequest,
    tell: Tell,
    watch: Callable[[Fleet], None],
    launch: Launch,
) -> None:
    def told(line: str) -> None:
        tell(f"difficulty scores: {line}")

    scoring = Fleet(
        runs,
        places[:1],
        stop,
        tell=told,
        watch=watch,
        command=lambda run: ("score", str(run.config)),
        launch=launch,
    )
    scoring.go()
    if scoring.failed:
        raise _failure(scoring.failed, "difficulty scorings failed")


def _failure(failed: Mapping[Run, Failure], what: str) -> ConfigError | EnvironmentProblem:
    names = "; ".join(f"{run.name} ({run.log})" for run in failed)
    refused = all(failure.status == 2 for failure in failed.values())
    kind = ConfigError if refused else EnvironmentProblem
    return kind(f"{len(failed)} {what}: {names}; mend that and run the same command to go on")


def write_results(comparison: Comparison, tell: Tell, last: bool = False) -> None:
    """Write the results so far; before the last time, what fails is told and stops no run."""
    try:
        from hbo.reports import write_comparison

        write_comparison(comparison.folder)
    except Exception as error:
        if last:
            raise
        tell(f"notice: the results so far could not be written: {error}")


def start_anew(comparison: Comparison) -> None:
    """Remove what earlier runs of a comparison wrote."""
    for run in comparison.runs:
        if run.folder.exists():
            with alone_in(run.folder):
                files.clear(run.folder)
        for path in (run.config, run.log):
            path.unlink(missing_ok=True)
    for name in (MANIFEST, *PAGES):
        (comparison.folder / name).unlink(missing_ok=True)


def write_run_config(run: Run) -> None:
    """Write the configuration file that a run is made from."""
    values = run.loaded.document.values
    write_whole(run.config, yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100))


def remove_models(run: Run) -> None:
    """Remove the weights of a finished run, which nothing of a comparison reads."""
    shutil.rmtree(run.folder / files.MODEL, ignore_errors=True)
    for path in checkpoints_in(run.folder).values():
        shutil.rmtree(path, ignore_errors=True)
