"""Any bytes as a configuration: settings, or one line of one error, in seconds."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbo.config import load_config
from hbo.config.trl import check_trl
from hbo.errors import HBOError
from tests.security.mutate import damaged, damaged_bytes
from tests.support.workspace import CONFIG, write_config

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)

FULL: dict[str, Any] = copy.deepcopy(CONFIG) | {
    "tuning": {"use_peft": True, "lora_r": 4, "dtype": "float32", "lora_target_modules": ["q"]},
    "evaluation": {"holdout": 0.2, "before": True, "benchmarks": ["mmlu"], "max_examples": 3},
    "policies": {"fixed": {"policy": "static", "weights": {"german": 1.0, "arabic": 2.0}}},
}
FULL["datasets"]["german"] |= {"weight": 1.0, "max_passes": 3.0, "min_share": 0.1, "columns": ["a"]}
FULL["datasets"]["arabic"] |= {"weight": 2.0, "split": "train[:3]", "eval_files": ["e.jsonl"]}
FULL["training"] |= {"learning_rate": 1e-5, "lr_scheduler_kwargs": {"a": 1}, "hub_token": "x"}

HEAD = "model: m\ndatasets: {a: {data_files: x.jsonl}}\n"
MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
ALIASES = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
HUGE = "9" * 1_000_000
BOMBS: dict[str, tuple[str, str]] = {
    "aliases of aliases": (f"a0: &a0 [x]\n{ALIASES}{HEAD}", "nested too deeply or too large"),
    "merges of merges": (f"a0: &a0 {{}}\n{MERGES}{HEAD}", "nested too deeply or too large"),
    "an alias of itself": (f"a: &a [*a]\n{HEAD}", "nested too deeply"),
    "a merge of itself": (f"a: &a {{<<: *a}}\n{HEAD}", "nested too deeply"),
    "depth": (f"{HEAD}tuning: {'[' * 20_000}", "nested too deeply"),
    "depth within bounds of the parser": (f"{HEAD}tuning: {'[' * 100}{']' * 100}", "nested too"),
    "a million digits": (f"{HEAD}seed: {HUGE}", "c.yaml:3"),
    "a million hexadecimal digits": (f"{HEAD}seed: 0x{HUGE}", "c.yaml:3"),
    "400 digits in a policy's field": (f"{HEAD}balance: {{rate: {HUGE[:400]}}}", "too large a num"),
    "a NUL": (f'{HEAD}output_dir: "a\\0b"', r"'\x00' is no character of a text"),
    "half a surrogate pair": (f'{HEAD}output_dir: "\\ud800"', "is no character of a text"),
    "a tag": (f"{HEAD}tuning: !!python/object/apply:os.mkdir [pwned]", "is not allowed"),
    "a tag of ours": (f"{HEAD}tuning: !open /etc/passwd", "is not allowed"),
    "a tag over all": ("!!python/object/apply:os.mkdir [pwned]", "must be a mapping"),
}


def one_line(work: Callable[[], object]) -> str | None:
    """The line of the error that something ends in, if it does; other exceptions pass."""
    try:
        work()
    except HBOError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


@SHARED
@given(values=damaged(FULL, times=3), kind=st.sampled_from(("c.json", "c.yaml")))
def test_any_values_anywhere_give_settings_or_one_line(tmp_path: Path, values: Any, kind: str):
    path = tmp_path / kind
    path.write_text(json.dumps(values).replace("Infinity", ".inf" if "y" in kind else "1e999"))
    one_line(lambda: check_trl(load_config(path), accelerator=False))


@SHARED
@given(data=st.data(), kind=st.sampled_from(("c.json", "c.yaml")))
def test_any_bytes_give_settings_or_one_line(tmp_path: Path, data: st.DataObject, kind: str):
    text = json.dumps(FULL).encode() if kind == "c.json" else write_config(tmp_path).read_bytes()
    path = tmp_path / kind
    path.write_bytes(data.draw(damaged_bytes(text)))
    one_line(lambda: load_config(path))


@SHARED
@given(st.text(max_size=40))
def test_any_override_gives_settings_or_one_line(tmp_path: Path, text: str):
    path = write_config(tmp_path)
    for override in (
        text,
        f"training.max_steps={text}",
        f"datasets.{text}.weight=1",
        f"seed={text}",
    ):
        one_line(lambda override=override: load_config(path, [override]))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_seconds_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    text, message = BOMBS[name]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    start = time.perf_counter()
    assert message in (one_line(lambda: load_config(path)) or "")
    assert time.perf_counter() - start < 20
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "text",
    ['{"model": ' + "[" * 100_000, '{"seed": ' + HUGE + "}", '{"a": ' + "[" * 90 + "]" * 90 + "}"],
)
def test_a_json_bomb_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "c.json"
    path.write_text(text)
    assert (one_line(lambda: load_config(path)) or "").startswith(f"{path}:1")


def test_what_is_no_file_is_never_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "loop", "zero"):
        path = tmp_path / f"{name}.yaml"
        assert str(path) in (one_line(lambda path=path: load_config(path)) or "")


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"max_steps": 1e308}},
        {"training": {"max_steps": 10**9, "per_device_train_batch_size": 10**9}},
        {"training": {"num_train_epochs": 1e308}},
        {"balance": {"lag": 10**18}},
        {"balance": {"policy": "static", "weights": [1e308, 1e308]}},
        {"difficulty": {"groups": 10**9}},
        {"evaluation": {"tokens_per_batch": 2**62}},
        {"model": "x" * 5000},
        {"datasets": {"a": {"data_files": "german.jsonl", "split": f"train[:{HUGE[:5000]}]"}}},
        {"datasets": {"a": {"data_files": "german.jsonl", "max_passes": 1e308}}},
        {"datasets": {"a": {"data_files": "german.jsonl", "weight": 1e308}}},
    ],
)
def test_gigantic_numbers_are_refused_by_the_program(workspace: Path, hbo, change: dict[str, Any]):
    write_config(workspace, **change)
    said = hbo("plan", "config.yaml")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("error: config.yaml:")
    assert len(said.err) < 2100
