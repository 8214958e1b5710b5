"""Read a run directory: the run log first, then the summary where the run got that far.

Nothing but what stands in the directory is used, so a run that was stopped, that never evaluated,
or whose policy never moved is read as well; what is missing is NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hbo.errors import DataError
from hbo.reports.record import (
    Evaluation,
    FloatArray,
    Heldout,
    LocalUpdate,
    RunRecord,
    Steps,
    Update,
    Warned,
)
from hbo.runlog import read_log

Events = Sequence[Mapping[str, Any]]
NAN = float("nan")
LARGEST = 1e15


def read_run(folder: Path | str, *, steps: bool = True) -> RunRecord:
    """Read one run directory.

    Args:
        folder: A directory with ``run.jsonl`` and, of a finished run, ``summary.json``.
        steps: Whether to read the logged training steps as well, which are most of the log; a
            finished run has its totals without them, but for tokens and train loss by subset.

    Returns:
        All that the run says.

    Raises:
        DataError: There is no run log, it holds no event of ours, or the summary is damaged.
    """
    folder = Path(folder)
    path = folder / "run.jsonl"
    if not path.is_file():
        raise DataError(
            "no run here: run.jsonl is missing; give the output_dir of `hbo train`",
            where=str(folder),
        )
    events = read_log(path)
    if not events:
        raise DataError("the run log holds no event; run `hbo train` again", where=str(path))
    summary = _summary(folder, events)
    if not steps:
        events = [event for event in events if event["event"] != "step"]
    return _build(folder, events, summary)


def _summary(folder: Path, events: Events) -> Mapping[str, Any]:
    path = folder / "summary.json"
    if path.is_file():
        try:
            summary = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not valid JSON ({error}); restore it, or delete it to report from the run log",
                where=str(path),
            ) from None
        if not isinstance(summary, dict):
            raise DataError("must be a JSON object; delete it to use the run log", where=str(path))
        return summary
    ends = [event for event in events if event["event"] == "end"]
    return _mapping(ends[-1].get("summary")) if ends else {}


def _build(folder: Path, events: Events, summary: Mapping[str, Any]) -> RunRecord:
    start = next((event for event in reversed(events) if event["event"] == "start"), {})
    config = _mapping(start.get("config"))
    names = _names(config, summary, events)
    steps = _steps(names, events)
    draws_per_step = _draws_per_step(summary, events)
    updates = tuple(
        _update(names, event, draws_per_step) for event in events if event["event"] == "update"
    )
    evaluations = _evaluations(names, events, {None, "test"})
    per_subset = _mapping(summary.get("subsets"))

    def column(key: str) -> FloatArray:
        return np.array([_number(_mapping(per_subset.get(name)).get(key)) for name in names])

    loss = _heldout(column, "holdout_loss", [(e.step, e.loss) for e in evaluations])
    accuracy = _heldout(column, "holdout_accuracy", [(e.step, e.accuracy) for e in evaluations])
    return RunRecord(
        folder=folder,
        finished=bool(summary),
        policy=_policy(summary, config),
        seed=_whole(summary.get("seed", config.get("seed"))),
        model=str(config.get("model") or "a model"),
        subsets=names,
        steps=steps,
        updates=updates,
        evaluations=evaluations,
        validation=_evaluations(names, events, {"validation"}),
        warnings=tuple(_warning(event) for event in events if event["event"] == "warning"),
        last_step=_last_step(summary, steps, updates),
        draws_per_step=draws_per_step,
        examples=column("examples"),
        draws=_first_known(column("draws"), _total(steps.draws)),
        tokens=_total(steps.tokens),
        all_tokens=_number(summary.get("tokens"), float(_total(steps.tokens).sum())),
        passes=column("passes"),
        never_seen=column("never_seen"),
        train_loss=_first_known(column("train_loss"), _last_known(steps.subset_loss, len(names))),
        loss=loss,
        accuracy=accuracy,
        macro_loss=_macro_loss(summary, evaluations, loss),
        probabilities=_probabilities(names, summary),
        wall_seconds=_number(summary.get("wall_seconds")),
        training_seconds=_number(summary.get("training_seconds")),
        balance_seconds=_balance_seconds(summary, updates),
        config=config,
        config_text=_config_text(folder, config),
        versions={str(k): str(v) for k, v in _mapping(start.get("versions")).items()},
        provenance=_provenance(start, summary),
    )


# --- one event ----------------------------------------------------------------------------------


def _update(names: Sequence[str], event: Mapping[str, Any], draws_per_step: float) -> Update:
    step = _whole(event.get("step")) or 0
    effective_draw = _whole(event.get("effective_draw"))
    effective_step = float(step)
    if effective_draw is not None and draws_per_step > 0:
        effective_step = effective_draw / draws_per_step
    shared = _mapping(event.get("global"))
    local = _mapping(event.get("local"))
    return Update(
        step=step,
        effective_draw=effective_draw,
        effective_step=effective_step,
        rewards=_row(names, shared.get("rewards")),
        errors=_row(names, shared.get("errors")),
        before=_row(names, shared.get("before")),
        after=_row(names, shared.get("after")),
        local=tuple(_local(_mapping(local.get(name))) for name in names),
        seconds=_number(event.get("seconds")),
    )


def _local(values: Mapping[str, Any]) -> LocalUpdate | None:
    after = _groups(values.get("after"))
    if not len(after):
        return None

    def filled(key: str) -> FloatArray:
        found = _groups(values.get(key))
        return found if len(found) == len(after) else np.full(len(after), NAN)

    return LocalUpdate(filled("rewards"), filled("errors"), filled("before"), after)


def _steps(names: Sequence[str], events: Events) -> Steps:
    found = [event for event in events if event["event"] == "step"]

    def table(key: str, missing: float) -> FloatArray:
        rows = [
            [
                _number(_mapping(_mapping(event.get("subsets")).get(name)).get(key), missing)
                for name in names
            ]
            for event in found
        ]
        return np.array(rows, dtype=float).reshape(len(found), len(names))

    return Steps(
        step=np.array([_number(event.get("step")) for event in found]),
        loss=np.array([_number(event.get("loss")) for event in found]),
        draws=table("draws", 0.0),
        tokens=table("tokens", 0.0),
        subset_loss=table("loss", NAN),
    )


def _evaluations(
    names: Sequence[str], events: Events, splits: Collection[str | None]
) -> tuple[Evaluation, ...]:
    return tuple(
        _evaluation(names, event)
        for event in events
        if event["event"] == "evaluation" and event.get("split") in splits
    )


def _evaluation(names: Sequence[str], event: Mapping[str, Any]) -> Evaluation:
    subsets = _mapping(event.get("subsets"))
    loss = np.array([_metric(subsets.get(name), "loss") for name in names])
    accuracy = np.array(
        [_number(_mapping(subsets.get(name)).get("accuracy")) for name in names], dtype=float
    )
    examples = [_number(_mapping(subsets.get(name)).get("examples")) for name in names]
    macro = event.get("macro")
    return Evaluation(
        step=_whole(event.get("step")) or 0,
        loss=loss,
        accuracy=accuracy,
        macro_loss=_or_mean(_metric(macro, "loss"), loss),
        macro_accuracy=_or_mean(_number(_mapping(macro).get("accuracy")), accuracy),
        examples=np.array(examples, dtype=float),
        seconds=_number(event.get("seconds")),
        ours="perplexity" in _mapping(macro),
    )


def _warning(event: Mapping[str, Any]) -> Warned:
    return Warned(
        _whole(event.get("step")), str(event.get("code") or ""), str(event.get("text") or "")
    )


# --- the run as a whole -------------------------------------------------------------------------


def _names(
    config: Mapping[str, Any], summary: Mapping[str, Any], events: Events
) -> tuple[str, ...]:
    """Every subset that anything mentions, in the order of the configuration."""
    names: dict[str, None] = dict.fromkeys(_mapping(summary.get("probabilities")))
    names.update(dict.fromkeys(_mapping(summary.get("subsets"))))
    for event in events:
        if event["event"] in {"step", "evaluation"}:
            names.update(dict.fromkeys(_mapping(event.get("subsets"))))
        elif event["event"] == "update":
            names.update(dict.fromkeys(_mapping(_mapping(event.get("global")).get("after"))))
    configured = [str(name) for name in _mapping(config.get("datasets"))]
    if not names:
        return tuple(configured)
    first = [name for name in configured if name in names]
    return tuple(dict.fromkeys([*first, *names]))


def _draws_per_step(summary: Mapping[str, Any], events: Events) -> float:
    """From totals: the summary's, or those of the last logged step."""
    steps = [event for event in events if event["event"] == "step"]
    for draws, count in (
        (summary.get("draws"), summary.get("steps")),
        *((event.get("draws"), event.get("step")) for event in steps[-1:]),
    ):
        if _number(draws) > 0 and _number(count) > 0:
            return _number(draws) / _number(count)
    return NAN


def _policy(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return str(summary.get("policy") or _mapping(config.get("balance")).get("policy") or "hbo")


def _last_step(summary: Mapping[str, Any], steps: Steps, updates: Sequence[Update]) -> int:
    logged = [int(step) for step in steps.step[-1:] if math.isfinite(step)]
    return max([_whole(summary.get("steps")) or 0, *logged, *(u.step for u in updates)])


def _macro_loss(
    summary: Mapping[str, Any], evaluations: Sequence[Evaluation], loss: Heldout
) -> tuple[float, float]:
    before = _number(summary.get("macro_holdout_loss_before"))
    after = _number(summary.get("macro_holdout_loss_after"))
    if math.isfinite(before) or math.isfinite(after):
        return before, after
    if len(evaluations) > 1 and evaluations[0].step == 0:
        return evaluations[0].macro_loss, evaluations[-1].macro_loss
    return loss.macro


def _heldout(column: Any, key: str, seen: Sequence[tuple[int, FloatArray]]) -> Heldout:
    """The summary's numbers; where it has none, those of step 0 and of the last step evaluated."""
    before, after = column(f"{key}_before"), column(f"{key}_after")
    for step, values in seen:
        if step == 0:
            before = _first_known(before, values)
    for step, values in reversed(seen):
        if step > 0:
            after = _first_known(after, values)
            break
    return Heldout(before, after)


def _balance_seconds(summary: Mapping[str, Any], updates: Sequence[Update]) -> float:
    told = _number(summary.get("balance_seconds"))
    if math.isfinite(told):
        return told
    return float(np.nansum([update.seconds for update in updates])) if updates else NAN


def _probabilities(
    names: Sequence[str], summary: Mapping[str, Any]
) -> tuple[FloatArray, ...] | None:
    told = _mapping(summary.get("probabilities"))
    return tuple(_groups(told.get(name)) for name in names) if told else None


def _config_text(folder: Path, config: Mapping[str, Any]) -> str:
    path = folder / "config.yaml"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else ""


def _provenance(start: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, str]:
    told = {
        "mixture fingerprint": summary.get("mixture_fingerprint") or start.get("fingerprint"),
        "data fingerprint": summary.get("data_fingerprint"),
        "stream of draws, SHA-256": summary.get("stream_sha256"),
    }
    return {key: str(value) for key, value in told.items() if value}


# --- values -------------------------------------------------------------------------------------


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any, missing: float = NAN) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return missing
    # Beyond what anything measures, sums and charts would overflow.
    return float(value) if abs(value) <= LARGEST else missing


def _whole(value: Any) -> int | None:
    found = _number(value)
    return int(found) if math.isfinite(found) else None


def _metric(value: Any, key: str) -> float:
    """A number given bare, or under its name in a mapping."""
    return _number(value.get(key)) if isinstance(value, dict) else _number(value)


def _row(names: Sequence[str], values: Any) -> FloatArray:
    found = _mapping(values)
    return np.array([_number(found.get(name)) for name in names], dtype=float)


def _groups(values: Any) -> FloatArray:
    items: Iterable[Any] = values if isinstance(values, list) else ()
    return np.array([_number(item) for item in items], dtype=float)


def _first_known(first: FloatArray, second: FloatArray) -> FloatArray:
    return np.where(np.isfinite(first), first, second)


def _or_mean(value: float, values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return value if math.isfinite(value) or not len(known) else float(known.mean())


def _total(table: FloatArray) -> FloatArray:
    """Column sums (K,); NaN where nothing was logged at all."""
    return table.sum(axis=0) if len(table) else np.full(table.shape[1], NAN)


def _last_known(table: FloatArray, columns: int) -> FloatArray:
    last = np.full(columns, NAN)
    for row in table:
        last = _first_known(row, last)
    return last
