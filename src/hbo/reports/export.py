"""``hbo export``: a learned mixture as a recipe for other tools, and as a schedule to replay."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hbo.errors import ConfigError, DataError, EnvironmentProblem
from hbo.reports.mixture import LearnedMixture, learned_mixture
from hbo.reports.reading import read_run
from hbo.reports.record import RunRecord
from hbo.reports.text import visible

BUILDERS = {".parquet": "parquet", ".csv": "csv"}  # any other file is JSON or JSON Lines
_SPLIT = re.compile(r"(?P<name>\w+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")


def export_recipe(
    run_dir: Path | str,
    formats: Sequence[str] | None = None,
    output: Path | str | None = None,
) -> dict[str, str]:
    """Write down the mixture that a run learned.

    Shares are the draw-weighted average over the run, except in ``schedule`` and ``mixture``, which
    hold the whole trajectory.

    Args:
        run_dir: A run directory.
        formats: Some of ``FORMATS``: ``trl``, ``llamafactory``, ``axolotl``, ``schedule``,
            ``mixture``. None: all that this run can fill.
        output: A folder to write the files into; None writes nothing.

    Returns:
        File name -> text.

    Raises:
        ConfigError: An unknown format.
        DataError: No run there, or one that does not say what the format needs.
        EnvironmentProblem: The folder cannot be written.
    """
    for name in formats or ():
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}; allowed: {', '.join(FORMATS)}")
    run = read_run(run_dir)
    mixture = learned_mixture(run)
    chosen = formats or [name for name in FORMATS if name != "axolotl" or mixture.rows]
    files: dict[str, str] = {}
    for name in chosen:
        files.update(FORMATS[name](run, mixture))
    if output is not None:
        _write(Path(output), files)
    return files


def rows_without_repeats(rows: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Rows of each subset in the largest mixture that has these shares and repeats no row.

    This is what TRL 1.16 makes of ``fraction``: N = min over subsets of rows / share, then
    ``round(share * N)`` rows of each.

    Args:
        rows: (K,) rows there are.
        shares: (K,) shares that sum to 1.

    Example:
        >>> rows_without_repeats([1000, 100], [0.5, 0.5])
        [100, 100]
    """
    pairs = list(zip(rows, shares, strict=True))
    total = min((size / share for size, share in pairs if share > 0), default=0.0)
    return [min(round(share * total), size) for size, share in pairs]


# --- one function for each format -----------------------------------------------------------------


def _trl(run: RunRecord, mixture: LearnedMixture) -> dict[str, str]:
    """``datasets:`` of TRL's ``DatasetMixtureConfig``."""
    entries = [
        {**_trl_source(name, source), "fraction": float(share)}
        for name, source, share in zip(
            mixture.subsets, mixture.sources, mixture.average, strict=True
        )
    ]
    notes = [
        "For `trl sft --config` (DatasetMixtureConfig). `fraction` is the share of the final",
        "mixture: TRL normalises it and keeps the first rows of each dataset; none is repeated.",
    ]
    if mixture.rows is not None:
        kept = rows_without_repeats(mixture.rows, mixture.average.tolist())
        notes.append("Rows that TRL keeps, if the files hold only the rows this run trained on:")
        notes += [
            f"  {visible(name)}: {keep:,} of {rows:,}"
            for name, keep, rows in zip(mixture.subsets, kept, mixture.rows, strict=True)
        ]
    return {"trl.yaml": _head(run, notes) + _yaml({"datasets": entries})}


def _trl_source(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        key: source[key]
        for key in ("path", "name", "data_dir", "data_files", "split", "columns")
        if source.get(key) is not None
    }
    if "path" not in kept:
        kept = {"path": _builder(kept["data_files"]) if "data_files" in kept else name, **kept}
    if kept.get("split") == "train":
        del kept["split"]
    return kept


def _llamafactory(run: RunRecord, mixture: LearnedMixture) -> dict[str, str]:
    """LLaMA-Factory's ``dataset``, ``mix_strategy`` and ``interleave_probs``."""
    slugs = _slugs(mixture.subsets)
    settings = {
        "dataset": ",".join(slugs),
        "mix_strategy": "interleave_under",
        "interleave_probs": ",".join(f"{share:.6f}" for share in mixture.average),
    }
    notes = [
        "Merge into your training YAML. `interleave_under` stops when the first dataset is used",
        "up; `interleave_over` repeats small ones until the largest is. The names are those of",
        "dataset_info.json beside this file: merge it into data/dataset_info.json, and add",
        "`formatting` and `columns` as your files need.",
        *(f"  {slug}: {visible(name)}" for slug, name in zip(slugs, mixture.subsets, strict=True)),
    ]
    entries = {
        slug: _llamafactory_source(name, source)
        for slug, name, source in zip(slugs, mixture.subsets, mixture.sources, strict=True)
    }
    info = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    return {"llamafactory.yaml": _head(run, notes) + _yaml(settings), "dataset_info.json": info}


def _llamafactory_source(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    files = source.get("data_files")
    if isinstance(files, str):
        return {"file_name": files}
    entry = {"hf_hub_url": source.get("path") or name}
    if source.get("name"):
        entry["subset"] = source["name"]
    if source.get("split") not in {None, "train"}:
        entry["split"] = source["split"]
    return entry


def _axolotl(run: RunRecord, mixture: LearnedMixture) -> dict[str, str]:
    """``datasets`` of axolotl, which has no shares: each entry is cut to the rows that give it."""
    if mixture.rows is None:
        raise DataError(
            "the axolotl recipe counts rows, which a run says when it ends; finish it with "
            "`hbo train --resume`, or choose another format",
            where=str(run.folder),
        )
    kept = rows_without_repeats(mixture.rows, mixture.average.tolist())
    entries = [
        _axolotl_source(name, source, keep)
        for name, source, keep in zip(mixture.subsets, mixture.sources, kept, strict=True)
        if keep > 0
    ]
    left_out = [
        visible(name) for name, keep in zip(mixture.subsets, kept, strict=True) if keep == 0
    ]
    notes = [
        "axolotl has no sampling shares: `split` keeps as many rows of each dataset as give the",
        "shares without repeating any. Set `type` to how the records look (chat_template,",
        "alpaca, ...).",
        *(
            [f"Left out, because less than one row remains: {', '.join(left_out)}"]
            if left_out
            else []
        ),
    ]
    return {"axolotl.yaml": _head(run, notes) + _yaml({"datasets": entries})}


def _axolotl_source(name: str, source: Mapping[str, Any], keep: int) -> dict[str, Any]:
    files = source.get("data_files")
    entry: dict[str, Any] = {"path": source.get("path") or name}
    if isinstance(files, str):
        entry = {"path": files, "ds_type": _builder(files)}
    elif files is not None:
        entry["data_files"] = files
    if source.get("name"):
        entry["name"] = source["name"]
    entry["split"] = _first_rows(str(source.get("split") or "train"), keep)
    entry["type"] = "chat_template"
    return entry


def _schedule(run: RunRecord, mixture: LearnedMixture) -> dict[str, str]:
    """The run's own configuration with policy ``schedule`` in the place of what learned it."""
    balance = run.config.get("balance")
    kept = balance if isinstance(balance, dict) else {}
    replay = {
        "policy": "schedule",
        "lag": mixture.lag,
        "unit": "examples",  # the log's probabilities are of draws, whatever the unit was
        **({"signals": kept["signals"]} if "signals" in kept else {}),
        "interpolation": "hold",
        "points": [
            {
                "step": point.step,
                "probabilities": [groups.tolist() for groups in point.probabilities],
            }
            for point in mixture.points
        ],
    }
    config = {
        key: value for key, value in run.config.items() if key not in {"versions", "policies"}
    }
    config["balance"] = replay
    if "output_dir" in config:
        config["output_dir"] = f"{config['output_dir']}-replay"
    return {"schedule.json": json.dumps(config, indent=1, ensure_ascii=False) + "\n"}


def _trajectory(run: RunRecord, mixture: LearnedMixture) -> dict[str, str]:
    """Average, final shares and the trajectory by name, for scripts."""

    def named(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(mixture.subsets, values, strict=True))

    told = {
        "schema": 1,
        "policy": run.policy,
        "seed": run.seed,
        "average": named(mixture.average.tolist()),
        "final": named(mixture.final.tolist()),
        "trajectory": [
            {
                "step": point.step,
                "effective_draw": point.effective_draw,
                "shares": named(point.shares.tolist()),
                "probabilities": named([groups.tolist() for groups in point.probabilities]),
            }
            for point in mixture.points
        ],
    }
    return {"mixture.json": json.dumps(told, indent=1, ensure_ascii=False) + "\n"}


FORMATS: dict[str, Callable[[RunRecord, LearnedMixture], dict[str, str]]] = {
    "trl": _trl,
    "llamafactory": _llamafactory,
    "axolotl": _axolotl,
    "schedule": _schedule,
    "mixture": _trajectory,
}


# --- pieces ---------------------------------------------------------------------------------------


def _head(run: RunRecord, notes: Sequence[str]) -> str:
    lines = [
        f"Mixture learned by {visible(run.policy)}, seed {run.seed}, averaged over",
        f"the draws of {run.last_step} optimiser steps. Paths are those of the configuration;",
        "for a name of `hbo assets`, write the folder that `hbo assets path NAME` prints.",
        *_held_out_notes(run),
        *notes,
    ]
    return "".join(f"# {line}\n" for line in lines)


def _held_out_notes(run: RunRecord) -> list[str]:
    """What must be said where held-out rows are a share of the training files themselves."""
    sources = run.config.get("datasets")
    inside = isinstance(sources, Mapping) and any(
        isinstance(source, Mapping) and not (source.get("eval_files") or source.get("eval_split"))
        for source in sources.values()
    )
    if not inside:
        return []
    return [
        "The files still hold the rows that this run kept apart for evaluation: another tool",
        "trains on them too, so measure what it makes on other examples.",
    ]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


def _builder(files: Any) -> str:
    """The builder of ``datasets.load_dataset`` that reads these files."""
    while isinstance(files, dict | list) and files:
        files = next(iter(files.values())) if isinstance(files, dict) else files[0]
    return BUILDERS.get(Path(str(files)).suffix.lower(), "json")


def _first_rows(split: str, keep: int) -> str:
    """The first ``keep`` rows of a split, itself a slice perhaps."""
    match = _SPLIT.fullmatch(split)
    if match is None:
        return f"train[:{keep}]"
    start = int(match["start"] or 0)
    return f"{match['name']}[{start or ''}:{start + keep}]"


def _slugs(names: Sequence[str]) -> list[str]:
    """Names that need no quoting in a comma-separated list; unique, in order."""
    slugs: list[str] = []
    for index, name in enumerate(names):
        slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_") or f"subset_{index + 1}"
        slugs.append(slug if slug not in slugs else f"{slug}_{index + 1}")
    return slugs


def _write(folder: Path, files: Mapping[str, str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the recipe: {error.strerror or error}; name another folder",
            where=str(folder),
        ) from None
