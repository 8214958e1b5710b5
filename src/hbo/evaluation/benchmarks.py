"""The paper's nine benchmarks: their tasks, what is read off them, and the paper's averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LETTERS = "acc,none"
NUMBERS = "exact_match,flexible-extract"

OWN_TASKS = Path(__file__).parent / "tasks"
"""Task files of benchmarks that lm-evaluation-harness has not."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the paper in the harness's terms.

    Args:
        tasks: Language -> name of a task of lm-eval 0.4.13 (or of a group of tasks, whose metric
            the harness averages over examples).
        metric: The number that is read off each task, as the harness names it.
        kind: Which of the paper's two averages it is in.
        dataset: Its data on the hub.
        folder: Of its task files, below the harness's ``tasks``; None: ours.
    """

    tasks: Mapping[str, str]
    metric: str
    kind: Literal["multilingual", "multitask"]
    dataset: str
    folder: str | None


def _in(pattern: str, languages: str) -> dict[str, str]:
    return {language: pattern.format(language) for language in languages.split()}


_MMMLU = {"ar": "ar_xy", "de": "de_de", "es": "es_la", "hi": "hi_in", "sw": "sw_ke", "zh": "zh_cn"}

BENCHMARKS: Mapping[str, Benchmark] = {
    # Those of the paper's eight languages (ar de en es hi ru sw zh) that the harness has. The paper
    # does not say which it used; its MGSM and XCOPA numbers fit six and two languages.
    "mmmlu": Benchmark(
        {language: f"mmmlu_{locale}" for language, locale in _MMMLU.items()},
        LETTERS,
        "multilingual",
        "openai/MMMLU",
        "openai-mmmlu/default",
    ),
    "mgsm": Benchmark(
        _in("mgsm_direct_{}", "de en es ru sw zh"),
        NUMBERS,
        "multilingual",
        "juletxara/mgsm",
        "mgsm/direct",
    ),
    "xcopa": Benchmark(
        _in("xcopa_{}", "sw zh"), LETTERS, "multilingual", "cambridgeltl/xcopa", "xcopa"
    ),
    "xstorycloze": Benchmark(
        _in("xstorycloze_{}", "ar en es hi ru sw zh"),
        LETTERS,
        "multilingual",
        "juletxara/xstory_cloze",
        "xstorycloze",
    ),
    "xnli": Benchmark(
        _in("xnli_{}", "ar de en es hi ru sw zh"), LETTERS, "multilingual", "facebook/xnli", "xnli"
    ),
    "mmlu": Benchmark({"en": "mmlu"}, LETTERS, "multitask", "cais/mmlu", "mmlu/default"),
    "multifin": Benchmark({"en": "multifin_en"}, LETTERS, "multitask", "awinml/MultiFin", None),
    "gsm8k": Benchmark({"en": "gsm8k"}, NUMBERS, "multitask", "openai/gsm8k", "gsm8k"),
    "medmcqa": Benchmark(
        {"en": "medmcqa"}, LETTERS, "multitask", "openlifescienceai/medmcqa", "medmcqa"
    ),
}
"""The paper's benchmarks by the names that ``evaluation.benchmarks`` takes."""


def macro_average(results: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The paper's averages: each benchmark over its languages, then each kind over its benchmarks.

    Args:
        results: Task name -> metric -> value, as ``run_harness`` returns them.

    Returns:
        ``means``: benchmark -> mean of its metric over its languages, for those with all their
        tasks in ``results``; ``mu_ml`` over the five multilingual and ``mu_mt`` over the four
        multitask ones, None where one of them is missing.

    Example:
        >>> macro_average({"xcopa_sw": {"acc,none": 0.5}, "xcopa_zh": {"acc,none": 0.7}})
        {'means': {'xcopa': 0.6}, 'mu_ml': None, 'mu_mt': None}
    """
    means = {
        name: _mean([results[task][benchmark.metric] for task in benchmark.tasks.values()])
        for name, benchmark in BENCHMARKS.items()
        if all(benchmark.metric in results.get(task, ()) for task in benchmark.tasks.values())
    }
    return {"means": means, "mu_ml": _mu(means, "multilingual"), "mu_mt": _mu(means, "multitask")}


def _mu(means: Mapping[str, float], kind: str) -> float | None:
    names = [name for name, benchmark in BENCHMARKS.items() if benchmark.kind == kind]
    return _mean([means[name] for name in names]) if means.keys() >= set(names) else None


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def english_headlines(rows: Any) -> Any:
    """The English rows of MultiFin's data; ``tasks/multifin_en.yaml`` names this function."""
    return rows.filter(lambda row: row["lang"] == "English")
