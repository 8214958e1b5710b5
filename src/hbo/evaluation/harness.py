"""Standard benchmarks through lm-evaluation-harness, the tool that the paper measures with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hbo.errors import ConfigError, DataError, EnvironmentProblem
from hbo.evaluation.benchmarks import BENCHMARKS, OWN_TASKS
from hbo.evaluation.local_files import reading_from
from hbo.measure.ranks import ONE_RANK, Ranks


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks of the harness by name, and the groups whose averages it takes.

    Args:
        tasks: Name -> task, with its data.
        groups: Name -> group of tasks.
    """

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]


def load_tasks(benchmarks: Sequence[str], files: str | Path | None = None) -> Tasks:
    """The harness's tasks of some benchmarks, with their data.

    Needs the extra `eval` and, without `files`, the Hugging Face Hub or its cache.

    Args:
        benchmarks: Names in `BENCHMARKS`, or task names of the harness as they are.
        files: A folder with local copies of the datasets, read in place of the hub:
            `hbo.evaluation.local_files.read_local` says how it is laid out.

    Raises:
        ConfigError: No benchmark given, or one that the harness does not have.
        DataError: Local files are missing, or lack what a task reads.
        EnvironmentProblem: lm-eval is not installed, or a dataset cannot be had.
    """
    if not benchmarks:
        raise ConfigError(f"no benchmark given; there are: {', '.join(BENCHMARKS)}")
    manager = _manager(benchmarks)
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    with nullcontext() if files is None else reading_from(Path(files)):
        for benchmark in benchmarks:
            found = _load(manager, benchmark, files)
            tasks.update(found["tasks"])
            groups.update(found["groups"])
    return Tasks(tasks, groups)


def check_benchmarks(benchmarks: Sequence[str], files: str | Path | None = None) -> None:
    """Refuse, without loading any data, what `load_tasks` would refuse after a training.

    Where lm-eval is not installed, only the names in `BENCHMARKS` are known, and others pass.

    Args:
        benchmarks: As in `load_tasks`.
        files: As in `load_tasks`.

    Raises:
        ConfigError: The harness has no such task, or there is no such folder.
    """
    if files is not None and not Path(files).is_dir():
        raise ConfigError(f"evaluation.harness.files: {str(files)!r} is no folder; make it first")
    others = [name for name in benchmarks if name not in BENCHMARKS]
    if others and find_spec("lm_eval") is not None:
        manager = _manager(others)
        for name in others:
            _names(manager, name)


def run_harness(
    model: Any,
    tokenizer: Any,
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_size: int | str = 8,
    apply_chat_template: bool = False,
    ranks: Ranks = ONE_RANK,
) -> dict[str, dict[str, float]]:
    """Run tasks on a model, zero-shot.

    Args:
        model: A causal model of Transformers on its device, with or without adapters.
        tokenizer: Its tokenizer.
        tasks: As `load_tasks` returns them.
        limit: Use the first so many examples of each task; for trials.
        batch_size: Sequences a batch, or "auto".
        apply_chat_template: Ask through the tokenizer's chat template.
        ranks: Processes that share the examples, each with the same model.

    Returns:
        Task name -> metric -> value, standard errors included, as the harness names them; nothing
        on ranks other than 0.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    asked = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    if ranks.world_size > 1:
        from accelerate import Accelerator

        # The harness shares a model that it loaded itself, and leaves one that it is given to us.
        asked.accelerator = Accelerator()
        asked._rank, asked._world_size = ranks.rank, ranks.world_size
    for task in tasks.tasks.values():
        task.set_config(key="num_fewshot", value=0)
    found: Any = lm_eval.evaluate(
        asked,
        {"tasks": tasks.tasks, "groups": tasks.groups},
        limit=limit,
        apply_chat_template=apply_chat_template,
        log_samples=False,
    )
    results = {} if found is None else numbers_of(found["results"])
    return {task: numbers for task, numbers in results.items() if numbers}


def numbers_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The numbers in the harness's results; aliases and other texts left out.

    Example:
        >>> numbers_of({"xcopa_sw": {"alias": "sw", "acc,none": 0.5, "acc_stderr,none": "N/A"}})
        {'xcopa_sw': {'acc,none': 0.5}}
    """
    return {
        task: {
            metric: float(value)
            for metric, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, values in results.items()
    }


def _manager(benchmarks: Iterable[str]) -> Any:
    """The harness's index of tasks; of the folders that are needed only, where these are known."""
    try:
        import lm_eval.tasks
    except ImportError:
        raise EnvironmentProblem(
            "benchmarks need lm-evaluation-harness, which is not installed: pip install 'hbo[eval]'"
        ) from None
    folders = [OWN_TASKS]
    names = list(benchmarks)
    others = any(name not in BENCHMARKS for name in names)
    if not others:
        root = Path(lm_eval.tasks.__file__).parent
        known = [BENCHMARKS[name].folder for name in names]
        folders += [root / folder for folder in known if folder is not None]
    return lm_eval.tasks.TaskManager(include_path=folders, include_defaults=others)


def _load(manager: Any, benchmark: str, files: str | Path | None) -> dict[str, Any]:
    """One benchmark's ``tasks`` and ``groups``, with their data."""
    import datasets

    names = _names(manager, benchmark)
    datasets.disable_progress_bars()
    try:
        return {"groups": {}, **manager.load(names)}
    except DataError as error:
        raise DataError(f"benchmark {benchmark!r}: {error.message}", where=error.where) from None
    except Exception as error:
        # The task's own templates and functions meet the data here, and may raise anything.
        text = " ".join(str(error).split())[:200]
        if files is not None:
            raise DataError(
                f"benchmark {benchmark!r}: its local files lack what the task reads"
                f" ({type(error).__name__}: {text})",
                where=str(files),
            ) from error
        what = f"its data {BENCHMARKS[benchmark].dataset!r}" if benchmark in BENCHMARKS else "it"
        raise EnvironmentProblem(
            f"benchmark {benchmark!r}: {what} cannot be loaded ({text}); check the network, or name"
            " a folder of local copies in evaluation.harness.files"
        ) from error


def _names(manager: Any, benchmark: str) -> list[str]:
    """A benchmark's tasks and groups of tasks."""
    if benchmark in BENCHMARKS:
        return list(BENCHMARKS[benchmark].tasks.values())
    if benchmark not in manager.all_tasks:
        raise ConfigError(
            f"lm-evaluation-harness has no task {benchmark!r}; benchmarks by name: "
            f"{', '.join(BENCHMARKS)}; `lm_eval ls tasks` shows the rest"
        )
    return [benchmark]
