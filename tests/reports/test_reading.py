"""Reading a run directory, and what follows from it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hbo.reports import read_run
from hbo.reports.charts import smooth
from hbo.reports.plots import thinned
from tests.reports.fake_run import FakeRun, fake_run

SIZES = {"big": 300, "small": 100}
RUN = FakeRun(steps=20, interval=5, lag=3)


def test_what_the_summary_says(tmp_path):
    summary = fake_run(tmp_path, SIZES, RUN)
    run = read_run(tmp_path)
    assert run.finished and run.policy == "hbo" and run.seed == 42 and run.last_step == 20
    assert run.subsets == ("big", "small") and run.num_groups == 4 and run.draws_per_step == 8
    assert run.draws.tolist() == [s["draws"] for s in summary["subsets"].values()]
    assert run.tokens.sum() == summary["tokens"]
    assert run.macro_loss == (
        summary["macro_holdout_loss_before"],
        summary["macro_holdout_loss_after"],
    )
    assert run.cost == pytest.approx(17.9 / 312.4)


def test_the_law_changes_at_its_effective_draw(tmp_path):
    fake_run(tmp_path, SIZES, RUN)
    run = read_run(tmp_path)
    steps, shares = run.law
    assert steps.tolist() == [0, 8, 13, 18]  # decided at 5, 10, 15, lag 3
    assert run.prior == pytest.approx([0.75, 0.25]) and run.moved
    assert shares[-1] == pytest.approx(run.final)
    by_hand = (8 * shares[0] + 5 * shares[1] + 5 * shares[2] + 2 * shares[3]) / 20
    assert run.target == pytest.approx(by_hand)
    assert run.realised.sum() == pytest.approx(1) and run.token_share.sum() == pytest.approx(1)


def test_an_unfinished_run_is_read_from_its_log(tmp_path):
    fake_run(tmp_path, SIZES, FakeRun(steps=30, interval=5, lag=3, finished=False))
    run = read_run(tmp_path)
    assert not run.finished and run.last_step == 20 and run.draws_per_step == 8
    assert run.draws.sum() == 160 and np.isnan(run.passes).all()
    assert np.isfinite(run.loss.before).all() and np.isnan(run.loss.after).all()
    assert np.isfinite(run.train_loss).all() and np.isfinite(run.target).all()
    assert run.balance_seconds == pytest.approx(1.4 * len(run.updates))


def test_a_policy_that_does_not_move(tmp_path):
    fake_run(tmp_path, SIZES, FakeRun(steps=6, moves=False, policy="prop"))
    run = read_run(tmp_path)
    assert not run.moved and run.updates == ()
    assert run.target == pytest.approx([0.75, 0.25]) == run.prior.tolist()


def test_macro_accuracy_is_over_subsets_with_both_numbers(tmp_path):
    fake_run(tmp_path, {"a": 50, "b": 50, "c": 50}, RUN)  # the third is not gradable
    run = read_run(tmp_path)
    assert np.isnan(run.accuracy.after[2])
    assert run.accuracy.macro[1] == pytest.approx(run.accuracy.after[:2].mean())


def test_smooth_is_a_weighted_mean_of_what_is_known():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    weights = np.array([1.0, 9.0, 1.0, 3.0])
    assert smooth(values, weights, 2).tolist() == [1.0, 1.0, 3.0, 4.5]
    assert smooth(values, weights, 9)[-1] == pytest.approx((1 + 3 + 15) / 5)
    assert np.isnan(smooth(np.array([np.nan, 1.0]), np.ones(2), 1)[0])


def test_thinning_keeps_both_ends():
    assert thinned(5).tolist() == [0, 1, 2, 3, 4]
    few = thinned(10_000, 100)
    assert len(few) == 100 and few[0] == 0 and few[-1] == 9999


def test_only_the_test_half_counts_and_before_means_untouched(tmp_path):
    fake_run(tmp_path, SIZES, RUN)
    (tmp_path / "summary.json").unlink()
    log = tmp_path / "run.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    left_out = {("end", None), ("evaluation", 0)}
    kept = [e for e in events if (e["event"], e.get("step")) not in left_out]
    after = next(e for e in kept if e["event"] == "evaluation")
    validation = {**after, "split": "validation", "step": 0, "subsets": {"big": {"loss": 99.0}}}
    log.write_text("".join(json.dumps(e) + "\n" for e in [validation, *kept]))
    run = read_run(tmp_path)
    assert np.isnan(run.loss.before).all()  # the run was told not to evaluate the untouched model
    assert run.loss.after[0] == after["subsets"]["big"]["loss"]
