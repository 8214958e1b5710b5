"""The wrapper around lm-evaluation-harness, with a stand-in for it."""

from __future__ import annotations

import sys
import types

import pytest

from hbo.errors import ConfigError, EnvironmentProblem
from hbo.evaluation import BENCHMARKS, run_harness


@pytest.fixture
def harness(monkeypatch):
    """A harness that knows the benchmarks' tasks and returns what it was asked."""
    asked = {}

    def simple_evaluate(**arguments):
        asked.update(arguments)
        if arguments["limit"] == 0:
            raise ConnectionError("no hub\nsecond line")
        return {"results": {task: {"alias": task, "acc,none": 0.5} for task in arguments["tasks"]}}

    tasks = [task for names in BENCHMARKS.values() for task in names] + ["piqa"]
    manager = types.SimpleNamespace(all_tasks=tasks)
    module = types.ModuleType("lm_eval")
    module.simple_evaluate = simple_evaluate
    inside = types.ModuleType("lm_eval.tasks")
    inside.TaskManager = lambda: manager
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", inside)
    return asked


def test_benchmarks_become_tasks_and_other_names_pass(harness):
    results = run_harness("folder", ["xcopa", "piqa"], limit=3)
    assert harness["tasks"] == ["xcopa_sw", "xcopa_zh", "piqa"]
    assert harness["model_args"] == {"pretrained": "folder"}
    assert (harness["num_fewshot"], harness["limit"]) == (0, 3)
    assert results["xcopa_zh"] == {"acc,none": 0.5}


def test_unknown_task_is_the_users_mistake(harness):
    with pytest.raises(ConfigError, match=r"no task 'multifin'; benchmarks by name: mmmlu, mgsm"):
        run_harness("folder", ["multifin"])
    with pytest.raises(ConfigError, match="no benchmark given"):
        run_harness("folder", [])


def test_no_hub_is_one_line(harness):
    with pytest.raises(EnvironmentProblem, match=r"cannot load its data: no hub$"):
        run_harness("folder", ["mmlu"], limit=0)


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'hbo\[eval\]'"):
        run_harness("folder", ["mmlu"])
