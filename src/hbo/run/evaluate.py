"""``hbo evaluate``: a finished run's model on its held-out examples and on benchmarks."""

from __future__ import annotations

import io
import json
import sys
from contextlib import nullcontext, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hbo.config import LoadedConfig, load_config
from hbo.errors import ConfigError, DataError
from hbo.run import folder as files
from hbo.run.files import json_text, write_whole
from hbo.run.heldout import evaluate_half, to_json
from hbo.run.models import load_model
from hbo.run.prepare import Prepared, prepare
from hbo.run.progress import bar, say
from hbo.run.ranks import all_ranks, on_all_ranks
from hbo.run.world import is_main

SCHEMA = 1


def evaluate_run(folder: Path | str) -> dict[str, Any]:
    """Evaluate the model of a run and write ``evaluation.json`` beside it.

    Args:
        folder: A run's ``output_dir``.

    Returns:
        ``subsets`` and ``macro`` on the test half, and ``benchmarks`` where the configuration
        names any: ``asked``, ``means``, ``mu_ml``, ``mu_mt``, ``tasks`` (task -> metric -> value)
        and ``how``. Nothing on ranks other than 0, which only share the work.

    Raises:
        ConfigError: There is no such benchmark.
        DataError: There is no finished run, or its data are not where they were.
        EnvironmentProblem: The data of a benchmark cannot be had.
    """
    folder = Path(folder)
    loaded = _config(folder)
    model_folder = folder / files.MODEL
    if not model_folder.is_dir():
        text = "this run has no model yet; finish it with `hbo train CONFIG --resume`"
        if any((folder / name).is_file() for name in (files.HELDOUT, files.SUMMARY)):
            text = (
                "this run's model was removed, as `hbo compare` does without --keep-models; make it"
                f" anew: `hbo train {folder / files.CONFIG} --set output_dir=ANOTHER`"
            )
        raise DataError(text, where=str(folder))
    prepared = prepare(loaded, say)
    # Before the model is asked anything, since data may be missing.
    tasks = on_all_ranks(lambda: _tasks(loaded))
    model = _model(prepared, model_folder)
    with bar("evaluating") as done:
        results = evaluate_half(model, prepared, "test", done)
    evaluation = {"schema": SCHEMA, "split": "test", "step": _step(folder), **to_json(results)}
    if tasks is not None:
        evaluation["benchmarks"] = _benchmarks(prepared, model, tasks)
    if not is_main():
        return {}
    write_whole(folder / files.EVALUATION, json_text(evaluation))
    return evaluation


def _config(folder: Path) -> LoadedConfig:
    for name in (files.LOG, files.CONFIG):
        if not (folder / name).is_file():
            raise DataError(
                f"no run here: {name} is missing; give the output_dir of `hbo train`",
                where=str(folder),
            )
    return load_config(folder / files.CONFIG)


def _step(folder: Path) -> int | None:
    try:
        summary = json.loads((folder / files.SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return summary.get("steps") if isinstance(summary, dict) else None


def _model(prepared: Prepared, folder: Path) -> Any:
    """The trained model: whole, or the base model with its adapter."""
    if not (folder / "adapter_config.json").is_file():
        return load_model(prepared.loaded, str(folder), prepared.settings)
    from peft import PeftModel

    base = load_model(prepared.loaded, prepared.model, prepared.settings)
    return PeftModel.from_pretrained(base, str(folder))


def _tasks(loaded: LoadedConfig) -> Any:
    """The benchmarks' tasks with their data; an error names the configuration's line."""
    evaluation = loaded.config.evaluation
    if not evaluation.benchmarks:
        return None
    from hbo.evaluation.harness import load_tasks

    try:
        return load_tasks(evaluation.benchmarks, evaluation.harness.files)
    except ConfigError as error:
        raise loaded.error(("evaluation", "benchmarks"), error.message) from None


def _benchmarks(prepared: Prepared, model: Any, tasks: Any) -> dict[str, Any]:
    """What the benchmarks said, on rank 0; all ranks share the work."""
    from hbo.evaluation.benchmarks import macro_average
    from hbo.evaluation.harness import run_harness

    config = prepared.loaded.config
    asked = config.evaluation.harness.model_dump(exclude={"files"})
    # Its bars are for people, and it draws them wherever it runs.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        results = run_harness(model, prepared.tokenizer, tasks, **asked, ranks=all_ranks())
    how = {"lm_eval": version("lm_eval"), **asked, "num_fewshot": 0}
    benchmarks = config.evaluation.benchmarks
    return {"asked": benchmarks, **macro_average(results), "tasks": results, "how": how}
