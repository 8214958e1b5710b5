"""Names, averages and failures of the wrapper around lm-evaluation-harness."""

from __future__ import annotations

import sys

import datasets
import pytest

from hbo.errors import ConfigError, EnvironmentProblem
from hbo.evaluation import BENCHMARKS, harness, load_tasks, macro_average
from hbo.evaluation.harness import _manager


def test_every_task_of_the_table_is_one_of_the_harness():
    known = _manager(BENCHMARKS).all_tasks
    tasks = [task for each in BENCHMARKS.values() for task in each.tasks.values()]
    assert set(tasks) <= set(known)
    assert len(set(tasks)) == len(tasks) == 33
    # Which is why Russian is not in our list.
    assert not any(name.startswith("mmmlu_ru") for name in known)


def test_the_data_are_those_of_the_harness():
    index = _manager(BENCHMARKS).task_index
    for name, benchmark in BENCHMARKS.items():
        for task in benchmark.tasks.values():
            leaf = {"mmlu": "mmlu_virology"}.get(task, task)
            leaf = f"{task}_virology" if name == "mmmlu" else leaf
            assert index[leaf].cfg["dataset_path"] == benchmark.dataset


def test_means_are_over_languages_and_then_over_benchmarks():
    results = {
        task: {benchmark.metric: number / 10}
        for benchmark in BENCHMARKS.values()
        for number, task in enumerate(benchmark.tasks.values(), start=1)
    }
    averages = macro_average(results)
    assert averages["means"]["mgsm"] == pytest.approx(0.35)
    # 6, 6, 2, 7 and 8 languages; the multitask ones have one each.
    assert averages["mu_ml"] == pytest.approx((0.35 + 0.35 + 0.15 + 0.4 + 0.45) / 5)
    assert averages["mu_mt"] == pytest.approx(0.1)


def test_a_benchmark_that_lacks_a_language_has_no_mean():
    results = {"xcopa_sw": {"acc,none": 0.5}, "gsm8k": {"exact_match,flexible-extract": 0.25}}
    assert macro_average(results) == {"means": {"gsm8k": 0.25}, "mu_ml": None, "mu_mt": None}


def test_unknown_task_is_the_users_mistake(monkeypatch):
    # The whole index of the harness takes seconds to read.
    monkeypatch.setattr(harness, "_manager", lambda _names, few=_manager: few(["gsm8k"]))
    with pytest.raises(
        ConfigError, match=r"no task 'multifin_da'; benchmarks by name: mmmlu, mgsm"
    ):
        load_tasks(["multifin_da"])
    with pytest.raises(ConfigError, match="no benchmark given"):
        load_tasks([])


def test_no_hub_is_one_line_that_names_the_local_way(monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = (
        r"^benchmark 'gsm8k': its data 'openai/gsm8k' cannot be loaded \(Couldn't reach .*\); check"
        r" the network, or name a folder of local copies in evaluation.harness.files$"
    )
    with pytest.raises(EnvironmentProblem, match=message):
        load_tasks(["gsm8k"])


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'hbo\[eval\]'"):
        load_tasks(["mmlu"])
