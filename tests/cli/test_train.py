"""``hbo train`` and what follows it, on the tiny model: one run, many questions."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import yaml

from tests.support.workspace import write_config

FILES = {
    "config.yaml",
    "run.jsonl",
    "summary.json",
    "report.html",
    "heldout.json",
    "model",
    "checkpoint-4",
}


@pytest.fixture
def trained(workspace: Path, hbo) -> Path:
    said = hbo("train", "config.yaml")
    assert said.status == 0, said.err
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[-1] == f"report: {Path('run') / 'report.html'}"
    assert any("german" in line for line in lines)
    return workspace / "run"


def events(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_files_and_can_be_used(trained: Path, hbo):
    assert {path.name for path in trained.iterdir()} >= FILES
    check_summary(trained)
    check_log(trained)
    check_config(trained)
    model = {path.name for path in (trained / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= model
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in model)
    check_refused_and_finished(trained, hbo)
    check_results(trained, hbo)


def test_the_validation_half_is_measured_where_asked_for(workspace: Path, hbo):
    assert hbo("train", "config.yaml", "--set", "evaluation.validation=true").status == 0
    run = workspace / "run"
    rows = json.loads((run / "heldout.json").read_text())["splits"]
    assert set(rows) == {"validation", "test"}
    told = {
        event["split"]: event["subsets"]
        for event in events(run)
        if event["event"] == "evaluation" and event["step"] == 4
    }
    for half, subsets in rows.items():
        for name, row in subsets.items():
            weighted = sum(a * b for a, b in zip(row["losses"], row["tokens"], strict=True))
            assert weighted / sum(row["tokens"]) == pytest.approx(told[half][name]["loss"])
            if row["correct"] is not None:
                right = sum(row["correct"]) / len(row["correct"])
                assert right == pytest.approx(told[half][name]["accuracy"])
    summary = json.loads((run / "summary.json").read_text())["subsets"]
    assert {name: row["holdout_loss_after"] for name, row in summary.items()} == {
        name: row["loss"] for name, row in told["test"].items()
    }


def check_summary(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["schema"] == 1
    assert (summary["policy"], summary["seed"], summary["steps"], summary["draws"]) == (
        "hbo",
        7,
        4,
        8,
    )
    assert len(summary["stream_sha256"]) == len(summary["mixture_fingerprint"]) == 64
    total = sum(sum(groups) for groups in summary["probabilities"].values())
    assert total == pytest.approx(1)
    for row in summary["subsets"].values():
        assert row["passes"] == pytest.approx(row["draws"] / row["examples"])
        assert row["never_seen"] == row["examples"] - row["draws"]
        assert row["holdout_loss_before"] > 0
        assert row["holdout_loss_after"] > 0
        assert {"train_loss", "holdout_accuracy_before", "holdout_accuracy_after"} <= set(row)
    losses = [row["holdout_loss_after"] for row in summary["subsets"].values()]
    assert summary["macro_holdout_loss_after"] == pytest.approx(sum(losses) / 2)
    assert 0 < summary["balance_seconds"] < summary["wall_seconds"]


def check_log(run: Path) -> None:
    kinds = [event["event"] for event in events(run)]
    assert kinds[0] == "start"
    assert kinds[-1] == "end"
    assert kinds.count("evaluation") == 2
    assert kinds.count("update") == 3  # the first before any step
    assert kinds.count("step") == 2
    start = events(run)[0]
    assert start["config"]["datasets"]["german"]["data_files"] == "german.jsonl"
    assert start["versions"]["hbo"]
    assert (
        start["fingerprint"]
        == json.loads((run / "summary.json").read_text())["mixture_fingerprint"]
    )


def check_config(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["versions"]["hbo"]
    assert config["balance"]["lag"] == 1
    assert config["training"]["max_steps"] == 4


def check_refused_and_finished(run: Path, hbo) -> None:
    before = (run / "run.jsonl").read_bytes()
    said = hbo("train", "config.yaml")
    assert (said.status, said.out) == (2, "")
    assert "holds a run already; continue it with --resume" in said.err
    said = hbo("train", "config.yaml", "--resume", "--overwrite")
    assert said.status == 2
    said = hbo("train", "config.yaml", "--resume")
    assert said.status == 0
    assert "this run is finished" in said.out
    said = hbo("train", "config.yaml", "--resume", "--set", "seed=8")
    assert (said.status, said.out) == (2, "")
    assert "holds a finished run of another configuration (seed)" in said.err
    assert (run / "run.jsonl").read_bytes() == before


def check_results(run: Path, hbo) -> None:
    said = hbo("evaluate", run, "--json")
    assert (said.status, said.err) == (0, "")
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert json.loads(said.out) == evaluation
    summary = json.loads((run / "summary.json").read_text())
    for name, row in evaluation["subsets"].items():
        assert row["loss"] == pytest.approx(
            summary["subsets"][name]["holdout_loss_after"], rel=1e-4
        )
    assert hbo("report", run, "--output", "page.html").out == "page.html\n"
    said = hbo("export", run, "--format", "trl")
    assert said.status == 0
    assert len(yaml.safe_load(said.out)["datasets"]) == 2
    assert json.loads(hbo("plan", run / "config.yaml", "--json").out)["steps"] == 4


def test_resume_goes_on_where_a_checkpoint_is(workspace: Path, hbo):
    """A run of two halves is the run in one go: stream, log and weights."""
    for name, stop in (("whole", None), ("halves", 2)):
        write_config(workspace, output_dir=name)
        steps = ["--set", f"training.save_steps={stop or 4}"]
        assert hbo("train", "config.yaml", *steps).status == 0
    halves = workspace / "halves"
    for path in (halves / "summary.json", halves / "report.html"):
        path.unlink()
    state = halves / "checkpoint-4" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    said = hbo("train", "config.yaml", "--set", "training.save_steps=2", "--resume")
    assert said.status == 0
    assert "checkpoint-4 is damaged (trainer_state.json cannot be read)" in said.out
    assert "continuing from step 2" in said.out
    first, second = (
        json.loads((workspace / name / "summary.json").read_text()) for name in ("whole", "halves")
    )
    for key in ("stream_sha256", "probabilities", "macro_holdout_loss_after", "subsets"):
        assert first[key] == second[key]
    logs = [
        [(event["event"], event.get("step")) for event in events(workspace / name)
         if event.get("code") != "damaged-checkpoint"]
        for name in ("whole", "halves")
    ]  # fmt: skip
    assert logs[0] == logs[1]
    weights = [
        (workspace / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "halves")
    ]
    assert weights[0] == weights[1]


def test_resume_without_a_run_starts_one_and_overwrite_replaces_it(workspace: Path, hbo):
    assert hbo("train", "config.yaml", "--resume", "--set", "balance={policy: prop}").status == 0
    (workspace / "run" / "mine.txt").write_text("kept")
    said = hbo("train", "config.yaml", "--overwrite", "--set", "balance={policy: uni}")
    assert said.status == 0
    assert json.loads((workspace / "run" / "summary.json").read_text())["policy"] == "uni"
    assert [event["event"] for event in events(workspace / "run")].count("start") == 1
    assert (workspace / "run" / "mine.txt").read_text() == "kept"


def test_lora_columns_and_scores_of_another_model(workspace: Path, hbo):
    """Adapters are saved as adapters and evaluate as what they were trained to."""
    write_config(
        workspace,
        tuning={"use_peft": True, "lora_r": 4, "lora_target_modules": ["q_proj", "v_proj"]},
        difficulty={"metric": "ifd", "groups": 2, "cache_dir": "scores"},
    )
    said = hbo("train", "config.yaml")
    assert said.status == 0, said.err
    assert (workspace / "run" / "model" / "adapter_model.safetensors").is_file()
    evaluation = json.loads(hbo("evaluate", "run", "--json").out)
    summary = json.loads((workspace / "run" / "summary.json").read_text())
    assert evaluation["macro"]["loss"] == pytest.approx(
        summary["macro_holdout_loss_after"], rel=1e-4
    )


def test_score_fills_the_cache_that_plan_reads(workspace: Path, hbo):
    write_config(workspace, difficulty={"metric": "loss", "groups": 2, "cache_dir": "scores"})
    assert json.loads(hbo("plan", "config.yaml", "--json").out)["scored"] is False
    first = json.loads(hbo("score", "config.yaml", "--json").out)
    assert first["subsets"]["german"]["median"] > 0
    plan = json.loads(hbo("plan", "config.yaml", "--json").out)
    assert (plan["scored"], plan["cost"]["scoring_passes"]) == (True, 0)
    again = json.loads(hbo("score", "config.yaml", "--json").out)
    assert first["subsets"] == again["subsets"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_training_leaves_a_checkpoint_that_resumes(
    workspace: Path, hbo, number: int, status: int
):
    long = ["--set", "training.max_steps=2000", "--set", "training.logging_steps=1"]
    log = workspace / "run" / "run.jsonl"
    done = threading.Event()

    def send_when_training() -> None:
        while not done.wait(0.01):
            if log.is_file() and '"event": "step"' in log.read_text(encoding="utf-8"):
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=send_when_training)
    sender.start()
    said = hbo("train", "config.yaml", *long)
    done.set()
    sender.join()
    assert said.status == status
    assert said.err.startswith(f"stopped: {signal.Signals(number).name}; checkpoint at step ")
    (checkpoint,) = (workspace / "run").glob("checkpoint-*")
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    finish = ["--set", f"training.max_steps={step + 2}", "--set", "training.logging_steps=1"]
    said = hbo("train", "config.yaml", *finish, "--resume")
    assert (said.status, said.err) == (0, "")
    assert f"continuing from step {step}" in said.out
    steps = [event["step"] for event in events(workspace / "run") if event["event"] == "step"]
    assert steps == list(range(1, step + 3))


def test_the_validation_half_can_choose_the_best_checkpoint(workspace: Path, hbo):
    training = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_mixture_loss",
        "greater_is_better": False,
    }
    write_config(workspace, training=training)
    said = hbo("train", "config.yaml")
    assert (said.status, said.err) == (0, "")
    assert said.out.count("eval_mixture_loss") == 2
    state = json.loads((workspace / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_metric"] > 0


def test_a_disk_that_fills_is_the_environments_fault(
    workspace: Path, hbo, monkeypatch: pytest.MonkeyPatch
):
    """The run stops in one line, and what is there already resumes."""
    import hbo.run.train as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "summary.json")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", full)
        said = hbo("train", "config.yaml")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert said.err.startswith("error: summary.json: the disk is full")
    said = hbo("train", "config.yaml", "--resume")
    assert (said.status, said.err) == (0, "")
    assert json.loads((workspace / "run" / "summary.json").read_text())["steps"] == 4
    assert [event["event"] for event in events(workspace / "run")].count("end") == 1
    assert hbo("train", "config.yaml", "--set", "output_dir=whole").status == 0
    resumed, whole = (
        json.loads((workspace / name / "summary.json").read_text()) for name in ("run", "whole")
    )
    for key in ("stream_sha256", "subsets", "macro_holdout_loss_after"):
        assert resumed[key] == whole[key]
