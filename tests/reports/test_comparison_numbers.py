"""Comparisons: numbers against a plain calculation, and what is marked as the best."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hbo.reports import compare_folder
from hbo.reports.comparison.words import sentences
from hbo.statistics import holm
from tests.reports.comparisons import (
    ALIKE,
    BETTER,
    PROP,
    TEN,
    THREE,
    change,
    page_of,
    row_of,
)
from tests.reports.fake_run import FakeEntry, fake_comparison


def test_means_are_those_of_the_files(three):
    found = compare_folder(three)["policies"]["hbo"]
    for seed in (1, 2, 3):
        rows = {k: row_of(three, f"hbo/seed-{seed}", k) for k in THREE}
        losses = {k: np.average(row["losses"], weights=row["tokens"]) for k, row in rows.items()}
        right = {k: np.mean(row["correct"]) for k, row in rows.items() if row["correct"]}
        assert set(right) == {"a", "b"}
        for name, value in (
            ("macro_loss", np.mean(list(losses.values()))),
            ("worst_loss", max(losses.values())),
            ("macro_accuracy", np.mean(list(right.values()))),
            ("worst_accuracy", min(right.values())),
        ):
            assert found[name]["per_seed"][str(seed)] == pytest.approx(value)
    assert found["worst_loss"]["subsets"] == ["c"]
    for name in ("macro_loss", "worst_loss", "macro_accuracy", "worst_accuracy"):
        one = found[name]
        assert one["mean"] == pytest.approx(np.mean(list(one["per_seed"].values())))
        assert one["low"] < one["mean"] < one["high"]
    assert found["subsets"]["c"]["accuracy"] is None
    assert found["subsets"]["a"]["examples"] == 30


def test_differences_are_paired_and_tested(three):
    policies = compare_folder(three)["policies"]
    assert policies["prop"]["difference"] is None
    for name in ("static", "hbo"):
        for key in ("loss", "accuracy", "worst_loss", "worst_accuracy"):
            of = key if key.startswith("worst") else f"macro_{key}"
            found = policies[name]["difference"][key]
            mine, theirs = policies[name][of]["per_seed"], policies["prop"][of]["per_seed"]
            assert found["per_seed"] == pytest.approx({s: mine[s] - theirs[s] for s in mine})
            assert found["mean"] == pytest.approx(np.mean(list(found["per_seed"].values())))
            assert found["low"] <= found["mean"] <= found["high"]
    for key in ("loss", "accuracy"):
        both = [policies[name]["difference"][key] for name in ("static", "hbo")]
        assert [row["p_corrected"] for row in both] == holm([row["p"] for row in both])
    loss = policies["hbo"]["difference"]["loss"]
    assert loss["p"] == 0.25 and loss["p_corrected"] == 0.5 and loss["high"] < 0
    # Examples are common to both, so the difference is known far better than either loss.
    width = policies["hbo"]["macro_loss"]["high"] - policies["hbo"]["macro_loss"]["low"]
    assert loss["high"] - loss["low"] < 0.7 * width


def test_costs_and_passes_are_those_of_the_runs(three):
    found = compare_folder(three)["policies"]["hbo"]
    summaries = [
        json.loads((three / f"hbo/seed-{seed}/summary.json").read_text()) for seed in (1, 2, 3)
    ]
    tokens = [summary["tokens"] for summary in summaries]
    assert found["cost"]["tokens"] == pytest.approx(np.mean(tokens))
    passes = [summary["subsets"]["b"]["passes"] for summary in summaries]
    assert found["passes_smallest"] == pytest.approx(np.mean(passes))
    assert found["subsets"]["b"]["passes"] == pytest.approx(np.mean(passes))
    assert sum(subset["share"] for subset in found["subsets"].values()) == pytest.approx(1.0)
    assert found["cost"]["draws"] == 48 and found["cost"]["wall_seconds"] == 312.4
    assert found["cost"]["balance_share"] == pytest.approx(17.9 / 312.4)
    assert found["cost"]["training_seconds"] is None


def test_the_same_folder_gives_the_same_numbers(three):
    assert compare_folder(three) == compare_folder(three)


def test_the_untouched_model_stands_beside_the_others(three, tmp_path):
    folder = fake_comparison(tmp_path, [PROP, BETTER], (1,), THREE)
    change(folder / "runs.json", lambda m: m.update(before="prop/seed-1"))
    before = compare_folder(folder)["before"]
    summary = json.loads((folder / "prop/seed-1/summary.json").read_text())
    assert before["macro_loss"] == pytest.approx(summary["macro_holdout_loss_before"])
    assert before["subsets"]["a"]["loss"] == summary["subsets"]["a"]["holdout_loss_before"]
    assert before["subsets"]["c"]["accuracy"] is None
    assert "The untouched model has a macro loss of" in page_of(folder)[1].text
    assert compare_folder(three)["before"] is None


def test_a_difference_is_of_the_seeds_that_both_have(tmp_path):
    short = FakeEntry("prop", seeds=(1, 2))
    found = compare_folder(fake_comparison(tmp_path, [short, BETTER], noise=0.001))
    assert found["policies"]["hbo"]["seeds"] == [1, 2, 3]
    difference = found["policies"]["hbo"]["difference"]["loss"]
    assert list(difference["per_seed"]) == ["1", "2"]
    # A seed that one of them lacks would count as a loss of nothing.
    assert -0.35 < difference["low"] <= difference["mean"] <= difference["high"] < -0.25


# --- the best -------------------------------------------------------------------------------------


def test_what_is_close_is_not_marked_as_best(tmp_path):
    found = compare_folder(fake_comparison(tmp_path, [PROP, ALIKE], TEN))
    assert found["best"]["macro_loss"] is None
    assert {row["loss"] for row in found["best"]["subsets"].values()} == {None}
    assert 'class="best"' not in page_of(tmp_path)[0]
    assert "not shown to be more than noise" in sentences(found)[0]


def test_the_best_is_clear_of_every_other_policy_not_of_one(tmp_path):
    twin = FakeEntry("mos", -0.3)
    found = compare_folder(fake_comparison(tmp_path / "twin", [PROP, BETTER, twin], TEN))
    assert found["best"]["macro_loss"] is None and found["best"]["subsets"]["a"]["loss"] is None
    found = compare_folder(fake_comparison(tmp_path / "alone", [PROP, BETTER, ALIKE], TEN))
    assert found["best"]["macro_loss"] == found["best"]["subsets"]["a"]["loss"] == "hbo"


@pytest.mark.parametrize(
    ("entries", "seeds"),
    [([PROP, BETTER], (1,)), ([PROP, FakeEntry("hbo", -0.3, seeds=(2,))], (1, 2))],
    ids=["one", "one in common"],
)
def test_one_seed_marks_nothing_as_best(tmp_path, entries, seeds):
    found = compare_folder(fake_comparison(tmp_path, entries, seeds))
    assert found["policies"]["hbo"]["difference"]["loss"]["high"] < 0
    assert set(marks(found)) == {None}


@pytest.mark.parametrize(("examples", "macro"), [(1, None), (5, "hbo")])
def test_few_examples_mark_no_subset_and_a_single_one_no_average(tmp_path, examples, macro):
    found = compare_folder(fake_comparison(tmp_path, [PROP, BETTER], TEN, examples=examples))
    assert found["best"]["macro_loss"] == macro
    assert set(marks(found)[2:]) == {None}


def marks(found: dict) -> list[str | None]:
    """All that could be marked as best: the two averages first."""
    best = found["best"]
    rows = [value for row in best["subsets"].values() for value in row.values()]
    return [best["macro_loss"], best["macro_accuracy"], *rows]
