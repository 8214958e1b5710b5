"""``hbo evaluate`` with benchmarks on local files, from the configuration to evaluation.json."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from hbo.cli import main
from hbo.evaluation import BENCHMARKS, harness
from tests.evaluation import benchmark_files as made
from tests.support.workspace import CONFIG, make_workspace, write_config

ADAPTERS = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished run of four steps, with adapters."""
    folder = make_workspace(tmp_path_factory.mktemp("benchmarks"))
    made.xcopa(folder / "local")
    made.gsm8k(folder / "local")
    evaluation = {"benchmarks": ["xcopa", "gsm8k"], "harness": {"files": "local", "limit": 2}}
    balance = {**CONFIG["balance"], "policy": "prop"}
    write_config(folder, evaluation=evaluation, tuning=ADAPTERS, balance=balance)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HBO_CACHE", str(folder / "cache"))
        assert main(["train", "config.yaml"]) == 0
    return folder


@pytest.fixture
def inside(trained, monkeypatch) -> Path:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", trained / "datasets")
    return trained


def test_benchmarks_are_in_evaluation_json_and_on_the_screen(inside, capsys):
    assert main(["evaluate", "run"]) == 0
    found = json.loads((inside / "run/evaluation.json").read_text("utf-8"))["benchmarks"]
    assert found["asked"] == ["xcopa", "gsm8k"]
    assert set(found["means"]) == {"xcopa", "gsm8k"}
    assert found["mu_ml"] is None and found["mu_mt"] is None
    assert found["tasks"]["xcopa_zh"]["sample_len"] == 2
    assert found["how"] == {
        "lm_eval": "0.4.13",
        "limit": 2,
        "batch_size": 8,
        "apply_chat_template": False,
        "num_fewshot": 0,
    }
    said = capsys.readouterr()
    assert f"xcopa: {100 * found['means']['xcopa']:.2f} %  (sw " in said.out
    assert said.err == ""


def test_what_is_missing_is_said_before_anything_is_measured(inside, capsys, monkeypatch):
    config = inside / "run/config.yaml"
    whole = config.read_text("utf-8")
    # The whole index of the harness takes seconds to read.
    monkeypatch.setattr(harness, "_manager", lambda _names, few=harness._manager: few(BENCHMARKS))
    monkeypatch.setattr("hbo.run.evaluate.evaluate_half", lambda *_: pytest.fail("measured"))
    for old, new, message in (
        ("- gsm8k", "- gsm9k", "run/config.yaml:"),
        ("- gsm8k", "- mgsm", "error: local/juletxara/mgsm: benchmark 'mgsm': there is no folder"),
    ):
        assert old in whole
        config.write_text(whole.replace(old, new), encoding="utf-8")
        assert main(["evaluate", "run"]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert message in error[0]
    config.write_text(whole, encoding="utf-8")
