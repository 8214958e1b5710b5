"""``hbo compare``: its options, its plan, and a real comparison that is killed and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hbo.errors import ConfigError
from tests.support.workspace import write_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds: '0' are no seeds; allowed: how many (1 to 1000), or a list"),
        (["--seeds", "1,1"], "--seeds: '1,1' are no seeds"),
        (["--seeds", "1,x"], "are no seeds"),
        (["--seeds", "4294967296,"], "are no seeds"),
        (["--seeds", "9" * 5000], "are no seeds"),
        (["--seeds", "²,"], "are no seeds"),
        (["--policies", "prop,prop"], "--policies: 'prop' is given twice; keep one"),
        (["--policies", "prop,,uni"], "--policies: 'prop,,uni' holds an empty name"),
        (["--policies", "porp"], "--policies: unknown policy 'porp'; did you mean 'prop'?"),
        (["--against", "uni"], "--against: unknown entry 'uni'"),
    ],
)
def test_options_that_make_no_sense_are_one_line(workspace: Path, hbo, options, message):
    said = hbo("compare", "config.yaml", *options)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err
    assert not (workspace / "run").exists()


def test_it_is_not_for_launchers(workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = hbo("compare", "config.yaml")
    assert said.status == 2
    assert "call it without a launcher" in said.err


def test_the_plan_checks_all_and_leaves_nothing_behind(workspace: Path, hbo):
    write_config(
        workspace, policies={"few groups": {"policy": "hbo", "set": {"difficulty.groups": 1}}}
    )
    options = ["--policies", "prop,hbo,few groups", "--seeds", "5,3", "--jobs", "2", "--plan"]
    said = hbo("compare", "config.yaml", *options)
    assert (said.status, said.err) == (0, "")
    assert "6 runs, 0 finished" in said.out
    assert "seeds 5, 3; 2 at a time; how long it takes is not known" in said.out
    assert said.out.count("warning: german: only 2 test examples") == 1
    few = "Two seeds cannot give p < 0.05 by themselves: the smallest possible is 0.5, 1 when "
    assert f"warning: {few}corrected for 2 policies; 7 seeds would be needed." in said.out
    plan = json.loads(hbo("compare", "config.yaml", *options, "--json").out)
    assert [entry["name"] for entry in plan["entries"]] == ["prop", "hbo", "few groups"]
    assert [(entry["steps"], entry["draws"]) for entry in plan["entries"]] == [(4, 8)] * 3
    assert (plan["seeds"], plan["against"], plan["jobs"]) == ([5, 3], "prop", 2)
    assert plan["seeds_warning"].startswith("Two seeds")
    assert not (workspace / "run").exists()


@pytest.mark.process
def test_a_comparison_that_is_killed_goes_on_and_its_runs_are_those_of_train(workspace: Path, hbo):
    """Of two names for one law, the first is killed in the middle with its parent."""
    sizes = json.loads(hbo("plan", "config.yaml", "--json").out)["subsets"]
    weights = [subset["rows"] for subset in sizes.values()]
    steps = {"max_steps": 12, "per_device_train_batch_size": 2, "logging_steps": 1, "save_steps": 4}
    write_config(
        workspace,
        training=steps,
        policies={"sizes": {"policy": "static", "weights": weights}},
    )
    command = ["compare", "config.yaml", "--policies", "prop,sizes", "--seeds", "1"]
    log = workspace / "run" / "prop" / "seed-7" / "run.jsonl"
    kill_when_training(command, log)
    said = hbo(*command)
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines()[-1] == f"comparison: {Path('run') / 'comparison.html'}"
    for name in ("comparison.json", "comparison.md", "comparison.html"):
        assert (workspace / "run" / name).stat().st_size > 0
    assert "continuing from step" in (log.parent.parent / "seed-7.log").read_text()
    summaries = {
        name: json.loads((workspace / "run" / name / "seed-7" / "summary.json").read_text())
        for name in ("prop", "sizes")
    }
    assert summaries["prop"]["stream_sha256"] == summaries["sizes"]["stream_sha256"]
    check_the_same_by_train(workspace, hbo, summaries["prop"])
    assert not list((workspace / "run").rglob("*.safetensors"))
    again = hbo(*command, "--json")
    assert json.loads(again.out) == json.loads((workspace / "run/comparison.json").read_text())
    assert again.err == "2 of 2 runs are finished\n"


def kill_when_training(command: list[str], log: Path) -> None:
    """Begin a comparison; kill it, and nothing else, at the first step of its first run."""
    with subprocess.Popen(
        [sys.executable, "-m", "hbo", *command], stdout=subprocess.PIPE, text=True
    ) as parent:
        deadline = time.monotonic() + 120
        while not (log.is_file() and '"event": "step"' in log.read_text(encoding="utf-8")):
            assert parent.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(parent.pid, signal.SIGKILL)


def check_the_same_by_train(workspace: Path, hbo, summary: dict) -> None:
    """``hbo train`` of the run's configuration file, elsewhere, gives the same run."""
    values = yaml.safe_load((workspace / "run" / "prop" / "seed-7.yaml").read_text())
    text = yaml.safe_dump(values | {"output_dir": "alone"}, sort_keys=False)
    (workspace / "alone.yaml").write_text(text)
    assert hbo("train", "alone.yaml").status == 0
    alone = json.loads((workspace / "alone" / "summary.json").read_text())
    for key in ("stream_sha256", "probabilities", "subsets", "macro_holdout_loss_after"):
        assert alone[key] == summary[key]
    heldout = [workspace / "alone", workspace / "run" / "prop" / "seed-7"]
    first, second = (json.loads((folder / "heldout.json").read_text()) for folder in heldout)
    assert first == second
    assert set(first["splits"]) == {"validation", "test"}


def test_what_there_is_of_a_comparison_is_printed_when_a_run_fails(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    def fails(comparison, *_args, **_options):
        comparison.folder.mkdir(exist_ok=True)
        for name in ("comparison.json", "comparison.md", "comparison.html"):
            (comparison.folder / name).write_text(f"this is {name}\n")
        raise ConfigError("1 of 2 runs failed")

    monkeypatch.setattr("hbo.run.compare.run_comparison", fails)
    said = hbo("compare", "config.yaml", "--policies", "prop,uni", "--seeds", "1", "--json")
    assert said.err == "error: 1 of 2 runs failed\n"
    assert (said.status, said.out) == (2, "this is comparison.json\n")
    assert said.err == "error: 1 of 2 runs failed\n"
