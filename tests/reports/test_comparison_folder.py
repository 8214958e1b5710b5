"""Comparisons that are unfinished, small or damaged, or whose runs do not belong together."""

from __future__ import annotations

import json
import re
import sys

import pytest

from hbo.errors import DataError, EnvironmentProblem
from hbo.reports import compare_folder, write_comparison
from tests.reports.comparisons import ALIKE, BETTER, PROP, THREE, change, page_of
from tests.reports.fake_run import FakeEntry, FakeRun, fake_comparison


def test_runs_that_are_missing_are_said_and_left_out_of_pairs(tmp_path):
    late = FakeEntry("hbo", -0.3, seeds=(1, 3))
    never = FakeEntry("mos", seeds=())
    folder = fake_comparison(tmp_path, [PROP, late, never], sizes=THREE)
    (folder / "prop/seed-3/summary.json").unlink()
    found = compare_folder(folder)
    assert found["missing"] == [
        {"policy": "prop", "seed": 3},
        {"policy": "hbo", "seed": 2},
        *({"policy": "mos", "seed": seed} for seed in (1, 2, 3)),
    ]
    assert found["policies"]["hbo"]["seeds"] == [1, 3] and "mos" not in found["policies"]
    assert list(found["policies"]["hbo"]["difference"]["loss"]["per_seed"]) == ["1"]
    assert (
        "5 runs are missing: prop (seed 3); hbo (seed 2); mos (seeds 1, 2, 3)"
        in (found["warnings"][0])
    )
    _, page = page_of(folder)
    assert "2 of 3 seeds" in page.text and not re.search(r"\bnan\b|\bNone\b", page.text)


@pytest.mark.parametrize(
    ("entries", "seeds", "said"),
    [
        ([PROP], (1, 2), "there is nothing yet to compare it with"),
        ([PROP, BETTER], (1,), "One seed cannot give p < 0.05 by itself: the smallest possible"),
        ([PROP], (1,), "say nothing about other seeds"),
        ([BETTER, ALIKE], (1, 2), "'prop', which the others are compared with, has no finished"),
        ([FakeEntry("prop", seeds=()), FakeEntry("hbo", seeds=())], (1, 2), "No run is finished"),
        ([PROP, FakeEntry("hbo", seeds=(2,))], (1, 2), "hbo (seed 1)"),
    ],
    ids=["one policy", "one seed", "one run", "no reference", "nothing", "one pair"],
)
def test_small_comparisons_have_whole_pages(tmp_path, entries, seeds, said):
    folder = fake_comparison(tmp_path, entries, seeds)
    _, page = page_of(folder)
    assert said in page.text and page.unbalanced == []
    assert not re.search(r"\bnan\b|\bNone\b", page.text)
    markdown = (folder / "comparison.md").read_text()
    assert said in markdown and "nan" not in markdown
    json.loads((folder / "comparison.json").read_text(), parse_constant=pytest.fail)


def test_a_run_that_diverged_is_in_no_number_and_said(tmp_path):
    folder = fake_comparison(tmp_path, [PROP, BETTER])

    def diverge(value):
        value["splits"]["test"]["b"]["losses"][3] = None

    change(folder / "hbo/seed-2/heldout.json", diverge)
    found = compare_folder(folder)
    assert found["policies"]["hbo"]["seeds"] == [1, 3]
    assert any("hbo, seed 2, diverged" in text for text in found["warnings"])


def test_runs_that_differ_in_steps_and_few_examples_are_warned_of(tmp_path):
    longer = FakeEntry("hbo", run=FakeRun(steps=8, interval=3, lag=1, groups=2))
    folder = fake_comparison(tmp_path, [PROP, longer], (1, 2), examples=5)
    warnings = compare_folder(folder)["warnings"]
    assert any("differ in steps (6, 8)" in text for text in warnings)
    assert any("Fewer than 20 test examples: a (5), b (5)" in text for text in warnings)


def test_other_test_examples_of_as_many_tokens_are_refused(tmp_path):
    folder = fake_comparison(tmp_path, [PROP, BETTER], (1,), THREE)
    heldout = folder / "hbo/seed-1/heldout.json"
    change(heldout, lambda v: v["splits"]["test"]["b"].pop("fingerprint"))
    compare_folder(folder)  # as a run from before there were fingerprints
    change(heldout, lambda v: v["splits"]["test"]["b"].update(fingerprint="other"))
    with pytest.raises(DataError) as caught:
        compare_folder(folder)
    said = str(caught.value)
    assert "tested on other examples" in said and "subset 'b'" in said and "\n" not in said
    assert str(folder / "prop/seed-1") in said and str(folder / "hbo/seed-1") in said


def test_runs_that_were_trained_on_other_data_are_named(tmp_path):
    folder = fake_comparison(tmp_path, [PROP, BETTER, ALIKE], (1, 2))

    def train_on(run: str, data: str | None) -> None:
        change(folder / run / "summary.json", lambda v: v.update(data_fingerprint=data))

    train_on("static/seed-2", None)  # as a run from before there were fingerprints
    assert not any("other data" in text for text in compare_folder(folder)["warnings"])
    train_on("hbo/seed-2", "other")
    said = [text for text in compare_folder(folder)["warnings"] if "other data" in text]
    assert len(said) == 1
    assert said[0].startswith("Trained on other data than the rest: hbo (seed 2). ")
    # An entry that sets something may well have other data: that is what it is for.
    change(folder / "runs.json", lambda m: m["entries"][1].update(set={"datasets": "other"}))
    assert not any("other data" in text for text in compare_folder(folder)["warnings"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r["tokens"].__setitem__(0, 999), "tested on other examples than"),
        (lambda r: r.update(correct=None, grading=None), "tested on other examples than"),
        (lambda r: r["losses"].pop(), "needs losses, tokens and correct"),
        (lambda r: r.pop("tokens"), "needs losses, tokens and correct"),
        (lambda r: r["tokens"].__setitem__(0, 0), "needs losses, tokens and correct"),
    ],
)
def test_held_out_files_that_do_not_fit_are_refused(tmp_path, edit, message):
    folder = fake_comparison(tmp_path, [PROP, BETTER], (1,))
    change(folder / "hbo/seed-1/heldout.json", lambda v: edit(v["splits"]["test"]["a"]))
    with pytest.raises(DataError, match=message):
        compare_folder(folder)


def test_folders_that_hold_no_comparison_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"runs\.json is missing; give the output_dir"):
        compare_folder(tmp_path)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "needs entries and seeds"),
        ('{"seeds": [1], "entries": [{"name": "x"}]}', "needs name, policy and folders"),
    ):
        (tmp_path / "runs.json").write_text(text)
        with pytest.raises(DataError, match=message):
            compare_folder(tmp_path)


def test_a_page_that_cannot_be_written_is_said_in_a_line(tmp_path):
    folder = fake_comparison(tmp_path, [PROP], (1,))
    (folder / "comparison.json").mkdir()
    with pytest.raises(EnvironmentProblem, match=r"cannot write the report: .*writable"):
        write_comparison(folder)


def test_numbers_and_markdown_are_there_without_the_libraries_of_the_page(tmp_path, monkeypatch):
    folder = fake_comparison(tmp_path, [PROP, BETTER], (1,))
    for name in [name for name in sys.modules if name.split(".")[0] == "jinja2"]:
        monkeypatch.delitem(sys.modules, name)
    for package, name in (("hbo.reports", "page"), ("hbo.reports.comparison", "page")):
        monkeypatch.delitem(sys.modules, f"{package}.{name}", raising=False)
        monkeypatch.delattr(f"{package}.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(EnvironmentProblem, match=r"needs jinja2.*pip install 'hbo\[report\]'"):
        write_comparison(folder)
    assert (folder / "comparison.json").is_file() and (folder / "comparison.md").is_file()
