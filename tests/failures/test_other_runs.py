"""A resume that is not what it seems: another model, option or process, and a lost best."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.failures.runs import SAVING, events, summary, timeless, warnings
from tests.support.tiny import tiny_model

RATIO = ["--set", "balance.local_reward=relative-perplexity"]
EPOCHS = [
    *("--set", "training.max_steps=-1", "--set", "training.num_train_epochs=2"),
    *("--set", "training.eval_strategy=epoch", "--set", "training.per_device_train_batch_size=4"),
]


def replace_model(workspace: Path, **settings: Any) -> None:
    """Other weights at the same place; the files that were there belong to all tests."""
    folder = workspace / "model"
    others = shutil.copytree(folder, workspace / "others")
    for path in others.glob("*.safetensors"):
        path.unlink()
    tiny_model(**settings).save_pretrained(others)
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)
    others.rename(folder)


def stopped(run: Path, step: int) -> None:
    """As a kill after this step's checkpoint leaves it."""
    (run / "summary.json").unlink()
    for path in run.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(path)
    kept = [event for event in events(run) if event.get("step", 0) <= step]
    kept = [event for event in kept if event["event"] != "end"]
    (run / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in kept))


def test_an_epoch_that_ends_in_a_checkpoint_is_evaluated_before_it(workspace: Path, hbo):
    """Or a run resumed from there would never evaluate it, and drop out otherwise."""
    replace_model(workspace, dropout=0.2)
    assert hbo("train", "config.yaml", *EPOCHS, "--set", "training.save_steps=3").status == 0
    run = workspace / "run"
    ends = [e["step"] for e in events(run, "evaluation") if e["split"] == "validation"]
    epoch = ends[0]
    whole = {"summary": timeless(summary(run)), "log": [timeless(e) for e in events(run)]}
    weights = (run / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(run)
    saving = ["--set", f"training.save_steps={epoch}"]
    assert hbo("train", "config.yaml", *EPOCHS, *saving).status == 0
    stopped(run, epoch)
    assert hbo("train", "config.yaml", *EPOCHS, *saving, "--resume").status == 0
    assert timeless(summary(run)) == whole["summary"]
    assert [timeless(event) for event in events(run)] == whole["log"]
    assert (run / "model" / "model.safetensors").read_bytes() == weights


def test_another_untouched_model_is_another_run(workspace: Path, hbo):
    metric = ["--set", "difficulty.metric=length", *RATIO]
    assert hbo("train", "config.yaml", *SAVING, *metric).status == 0
    run = workspace / "run"
    stopped(run, 2)
    before = (run / "run.jsonl").read_bytes()
    replace_model(workspace, seed=9)
    said = hbo("train", "config.yaml", *SAVING, *metric, "--resume")
    assert (said.status, "refer to another untouched model" in said.err) == (2, True), said.err
    assert (run / "run.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("balance.probe_examples=5", "another balance.probe_examples (2, here 5)"),
        ("balance.signals=probe", "another balance.signals ('observed', here 'probe')"),
        ("balance.policy=prop", "another policy ('HBO', here Prior)"),
        ("training.max_steps=1", "at step 2 already, and this is for 1"),
    ],
)
def test_what_cannot_change_is_refused_before_anything_is_written(
    workspace: Path, hbo, change: str, text: str
):
    assert hbo("train", "config.yaml", *SAVING).status == 0
    run = workspace / "run"
    stopped(run, 2)
    before = (run / "run.jsonl").read_bytes(), (run / "config.yaml").read_bytes()
    said = hbo("train", "config.yaml", *SAVING, "--set", change, "--resume")
    assert said.status == 2
    assert text in said.err
    assert ((run / "run.jsonl").read_bytes(), (run / "config.yaml").read_bytes()) == before


def test_a_damaged_best_checkpoint_does_not_become_the_result(workspace: Path, hbo):
    best: list[Any] = [
        *("--set", "training.eval_strategy=steps", "--set", "training.eval_steps=2"),
        *("--set", "training.load_best_model_at_end=true", "--set", "training.max_steps=6"),
        # The first evaluation is the best: a rate that ruins the model.
        *("--set", "training.learning_rate=0.3", "--set", "training.save_steps=2"),
        *("--set", "balance.rate=0"),  # the draws of the prior, whatever the default reward is
    ]
    assert hbo("train", "config.yaml", *best).status == 0
    run = workspace / "run"
    stopped(run, 4)
    weights = run / "checkpoint-2" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-100:] = bytes(100)
    weights.write_bytes(damaged)
    said = hbo("train", "config.yaml", *best, "--resume")
    assert said.status == 0
    assert "checkpoint-2, the best so far, is damaged (model.safetensors has changed)" in said.err
    assert "damaged-checkpoint" in warnings(run)
    assert (run / "model" / "model.safetensors").read_bytes() != bytes(damaged)


def test_a_run_that_logs_nothing_is_still_found_to_be_lost(workspace: Path, hbo):
    lost = [
        *("--set", "training.learning_rate=1e9", "--set", "training.max_grad_norm=0"),
        *("--set", "training.optim=sgd", "--set", "training.logging_strategy='no'"),
        *("--set", "balance.policy=prop", "--set", "training.max_steps=12"),
    ]
    said = hbo("train", "config.yaml", *lost)
    assert said.status == 2
    assert "training is lost" in said.err
    assert not (workspace / "run" / "summary.json").exists()


def test_two_processes_do_not_share_a_run(workspace: Path, hbo):
    (workspace / "run").mkdir()
    with FileLock(workspace / "run" / ".lock"):
        said = hbo("train", "config.yaml")
    assert (said.status, said.err.count("\n")) == (1, 1)
    assert "another process is at work on this run" in said.err
    assert hbo("train", "config.yaml").status == 0


def test_a_subset_cannot_take_the_name_of_the_average(workspace: Path, hbo):
    text = (workspace / "config.yaml").read_text().replace("  arabic:", "  mixture:")
    (workspace / "config.yaml").write_text(text)
    said = hbo("plan", "config.yaml", "--set", "training.eval_strategy=epoch")
    assert said.status == 2
    assert (
        "config.yaml:" in said.err and "a subset called 'mixture' cannot be evaluated" in said.err
    )


def test_a_bare_no_is_told_to_be_quoted(workspace: Path, hbo):
    said = hbo("plan", "config.yaml", "--set", "training.save_strategy=no")
    assert said.status == 2
    assert "the word no in quotes" in said.err
