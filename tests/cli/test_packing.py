"""hbo plan and hbo train with packing: rows are planned, drawn and reported."""

from __future__ import annotations

import json
from pathlib import Path

from hbo.runlog import read_log
from tests.support.workspace import CONFIG, write_config

PACKED = {**CONFIG["training"], "packing": True, "max_length": 128}


def test_rows_are_planned_drawn_and_gone_on_with(workspace: Path, hbo) -> None:
    assert hbo("plan", "config.yaml", "--json").status == 0
    whole = {"num_train_epochs": 1, **PACKED}
    del whole["max_steps"]
    write_config(workspace, training=whole)
    plan = json.loads(hbo("plan", "config.yaml", "--json").out)
    rows = {name: subset["rows"] for name, subset in plan["subsets"].items()}
    assert 2 < rows["german"] < 12 and plan["draws"] < 24
    assert hbo("train", "config.yaml").status == 0
    summary = json.loads((workspace / "run" / "summary.json").read_text())
    assert {name: each["examples"] for name, each in summary["subsets"].items()} == rows
    assert (summary["steps"], summary["draws"]) == (plan["steps"], plan["draws"])
    start = read_log(workspace / "run" / "run.jsonl")[0]
    assert start["fingerprint"] == summary["mixture_fingerprint"] == plan["fingerprint"]
    # What is held out is evaluated example by example, whatever the rows.
    write_config(workspace, training=CONFIG["training"], output_dir="unpacked")
    assert hbo("train", "config.yaml").status == 0
    other = json.loads((workspace / "unpacked" / "summary.json").read_text())
    before = [
        [subset["holdout_loss_before"] for subset in each["subsets"].values()]
        for each in (summary, other)
    ]
    assert before[0] == before[1]


def test_packing_that_splits_loses_no_end_of_an_example(workspace: Path, hbo) -> None:
    tokens = {}
    for strategy in ("bfd", "bfd_split", "wrapped"):
        training = {**PACKED, "packing_strategy": strategy, "max_length": 36}
        write_config(workspace, training=training)
        plan = json.loads(hbo("plan", "config.yaml", "--json").out)
        tokens[strategy] = sum(subset["tokens"] for subset in plan["subsets"].values())
        said = [warning["code"] for warning in plan["warnings"]]
        assert ("truncated" in said) == (strategy == "bfd")
    assert tokens["bfd"] < tokens["bfd_split"] == tokens["wrapped"]
