"""Comparisons in words, as a page and as Markdown."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hbo.reports import compare_folder
from hbo.reports.comparison.folder import read_comparison
from hbo.reports.comparison.markdown import plain
from hbo.reports.comparison.view import mean_law
from hbo.reports.comparison.words import sentences, verdict
from tests.reports.comparisons import ALIKE, BETTER, PROP, TEN, THREE, page_of
from tests.reports.fake_run import AWKWARD, FakeEntry, FakeRun, fake_comparison

# --- words ----------------------------------------------------------------------------------------


def test_three_seeds_are_told_what_they_cannot_show(three):
    found = compare_folder(three)
    assert found["warnings"] == [
        "Three seeds cannot give p < 0.05 by themselves: the smallest possible is 0.25, 0.5 when "
        "corrected for 2 policies; 7 seeds would be needed."
    ]
    headline = sentences(found)[0]
    assert headline.startswith("hbo has the lowest macro loss, ")
    assert (
        "whose interval leaves zero out, but 3 seeds cannot show that it is no chance" in headline
    )


def test_ten_seeds_of_a_large_difference_are_more_than_noise(tmp_path):
    found = compare_folder(fake_comparison(tmp_path, [PROP, ALIKE, BETTER], TEN))
    assert not found["warnings"]
    assert "which is more than noise (p = 0.0039, corrected" in sentences(found)[0]
    assert found["best"]["macro_loss"] == "hbo"
    assert found["best"]["subsets"]["a"]["loss"] == "hbo"
    alike = found["policies"]["static"]["difference"]["loss"]
    assert alike["low"] < 0 < alike["high"] and alike["p_corrected"] > 0.05
    text, _ = page_of(tmp_path)
    assert text.count('class="best"') >= 3 and 'class="sure"' in text


def test_the_reference_may_be_the_best(tmp_path):
    worse = FakeEntry("hbo", 0.2)
    headline = sentences(compare_folder(fake_comparison(tmp_path, [PROP, worse], TEN)))[0]
    assert headline.startswith("prop has the lowest macro loss, ")
    assert "the next, hbo, differs by +0.2" in headline and "which is more than noise" in headline


def test_an_accuracy_that_several_share_is_nobodys_best(three):
    found = compare_folder(three)

    def said(**means):
        for name, mean in means.items():
            found["policies"][name]["macro_accuracy"]["mean"] = mean
        return next(line for line in sentences(found) if line.startswith("Macro accuracy"))

    assert said(prop=0.0, static=0.0, hbo=0.0).startswith(
        "Macro accuracy is the same with each of them, 0.0% ["
    )
    assert said(prop=0.25, static=0.5, hbo=0.5).startswith(
        "Macro accuracy is highest with static, hbo, 50.0% ["
    )
    alone = said(prop=0.25, static=0.75, hbo=0.5)
    assert alone.startswith("Macro accuracy is highest with static, 75.0% [")
    assert "; the difference to prop is " in alone


def test_a_verdict_needs_the_interval_and_the_test():
    per_seed = dict.fromkeys("0123456789", -0.1)
    ten = {"low": -0.2, "high": -0.1, "p_corrected": 0.01, "per_seed": per_seed}
    assert verdict(ten, 3).startswith("which is more than noise (p = 0.01, corrected")
    assert "not shown" in verdict({**ten, "high": 0.1}, 3)
    assert "though its interval leaves zero out" in verdict({**ten, "p_corrected": 0.2}, 3)
    one = {**ten, "p_corrected": 1.0, "per_seed": {"1": -0.1}}
    assert "one seed cannot show that it is no chance (p = 1)" in verdict(one, 1)


# --- page and Markdown ----------------------------------------------------------------------------


def test_the_page_loads_nothing_and_is_whole(tmp_path):
    group = [FakeEntry("<b>x", -0.1, "<i>group"), FakeEntry("y|z", group="<i>group")]
    folder = fake_comparison(tmp_path, [PROP, *group], (1, 2), AWKWARD)
    text, page = page_of(folder)
    assert page.unbalanced == [] and "://" not in text
    for tag in ("script", "link", "img", "b", "i", "iframe"):
        assert not page.all(tag)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert not any(ord(c) < 0x20 and c != "\n" for c in text) and "\u202e" not in text
    assert "<i>group" in page.text and "العربية" in page.text
    assert len(page.all("svg")) == 2


def test_a_name_that_runs_right_to_left_turns_no_sentence_around(tmp_path):
    names = [FakeEntry("العربية <b>"), FakeEntry("hbo", 0.3), FakeEntry("ערבית", seeds=())]
    text, page = page_of(fake_comparison(tmp_path, names, (1, 2), against="العربية <b>"))
    assert "<bdi>العربية &lt;b&gt;</bdi> has the lowest macro loss" in text
    assert "are missing: <bdi>ערבית</bdi> (seeds 1, 2)" in text
    assert page.unbalanced == [] and "<bdi>hbo</bdi>, differs" not in text


def test_markdown_tables_are_rectangular_and_names_are_no_markup(tmp_path):
    names = [FakeEntry("prop"), FakeEntry("a|b *c* <d>", -0.1)]
    folder = fake_comparison(tmp_path, names, (1, 2), AWKWARD)
    page_of(folder)
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, flags=re.MULTILINE)
    assert len(tables) == 4
    for table in tables:
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(cells) == 1
    assert r"a\|b \*c\* \<d>" in text and "<script" not in text.replace(r"\<", "")
    assert plain("snake_case _it_ [a](b) # no") == r"snake_case \_it\_ [a\](b) # no"


def test_shares_are_averaged_over_runs_as_they_were_in_force(tmp_path):
    moving = FakeEntry("hbo", run=FakeRun(steps=9, interval=3, lag=1, groups=2))
    folder = fake_comparison(tmp_path, [moving, FakeEntry("prop")], (1, 2), THREE)
    records = [run.record for run in read_comparison(folder).policies[0].runs.values()]
    steps, shares = mean_law(records, ("b", "a"))
    assert steps.tolist() == [0.0, 4.0, 7.0]
    for step, row in zip(steps, shares, strict=True):
        expected = []
        for record in records:
            at = [u for u in record.updates if u.effective_step <= step]
            expected.append((at[-1].after if at else record.prior)[[1, 0]])
        assert row == pytest.approx(np.mean(expected, axis=0))
