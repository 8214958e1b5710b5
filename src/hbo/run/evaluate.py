"""``hbo evaluate``: a finished run's model on its held-out examples and on benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hbo.config import LoadedConfig, load_config
from hbo.errors import DataError
from hbo.run import folder as files
from hbo.run.files import json_text, write_whole
from hbo.run.heldout import evaluate_half, to_json
from hbo.run.models import load_model
from hbo.run.prepare import Prepared, prepare
from hbo.run.progress import bar, say
from hbo.run.world import is_main

SCHEMA = 1


def evaluate_run(folder: Path | str) -> dict[str, Any]:
    """Evaluate the model of a run and write ``evaluation.json`` beside it.

    Args:
        folder: A run's ``output_dir``.

    Returns:
        ``subsets`` and ``macro`` on the test half, and ``benchmarks`` where the configuration
        names any; nothing on ranks other than 0, which only share the work.

    Raises:
        DataError: There is no finished run, or its data are not where they were.
    """
    folder = Path(folder)
    loaded = _config(folder)
    model_folder = folder / files.MODEL
    if not model_folder.is_dir():
        raise DataError(
            "this run has no model yet; finish it with `hbo train CONFIG --resume`",
            where=str(folder),
        )
    prepared = prepare(loaded, say)
    with bar("evaluating") as done:
        results = evaluate_half(_model(prepared, model_folder), prepared, "test", done)
    if not is_main():
        return {}
    evaluation = {"schema": SCHEMA, "split": "test", "step": _step(folder), **to_json(results)}
    if loaded.config.evaluation.benchmarks:
        evaluation["benchmarks"] = _benchmarks(loaded, prepared, model_folder)
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


def _benchmarks(loaded: LoadedConfig, prepared: Prepared, folder: Path) -> dict[str, Any]:
    from hbo.evaluation.harness import run_harness

    return run_harness(
        folder,
        loaded.config.evaluation.benchmarks,
        apply_chat_template=prepared.tokenizer.chat_template is not None,
        device=str(prepared.settings.training.device),
        seed=loaded.config.seed,
    )
