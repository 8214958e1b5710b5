"""Comparisons: numbers against a plain calculation, choices on validation only, honest words."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from hbo.errors import DataError, EnvironmentProblem
from hbo.reports import compare_folder, write_comparison
from hbo.reports.comparison.folder import read_comparison
from hbo.reports.comparison.markdown import plain
from hbo.reports.comparison.view import mean_law
from hbo.reports.comparison.words import sentences, verdict
from hbo.statistics import holm
from tests.reports.fake_run import AWKWARD, FakeEntry, FakeRun, fake_comparison
from tests.reports.pages import Page, parse

THREE = {"a": 40, "b": 10, "c": 25}
TEN = tuple(range(10))
PROP, BETTER, ALIKE = FakeEntry("prop"), FakeEntry("hbo", -0.3), FakeEntry("static")


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def row_of(folder: Path, run: str, subset: str, half: str = "test") -> dict:
    return json.loads((folder / run / "heldout.json").read_text())["splits"][half][subset]


def page_of(folder: Path) -> tuple[str, Page]:
    text = write_comparison(folder).read_text(encoding="utf-8")
    return text, parse(text)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_comparison(tmp_path_factory.mktemp("three"), [PROP, ALIKE, BETTER], sizes=THREE)


# --- numbers --------------------------------------------------------------------------------------


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


# --- choices --------------------------------------------------------------------------------------

# The second is better on test examples, the first on validation examples.
GROUP = [
    FakeEntry("temp-2", 0.1, "temp", validation_shift=-0.2),
    FakeEntry("temp-9", -0.3, "temp", validation_shift=0.2),
]


def test_a_setting_is_chosen_on_validation_and_no_other_is_looked_at_on_test(tmp_path):
    folder = fake_comparison(tmp_path, [PROP, *GROUP], (1, 2))
    for seed in (1, 2):
        place = folder / f"temp-9/seed-{seed}"
        change(place / "heldout.json", lambda v: v["splits"].update(test="not to be read"))
        for name in ("summary.json", "run.jsonl"):
            (place / name).write_text("not to be read")
    found = compare_folder(folder)
    assert list(found["policies"]) == ["prop", "temp"]
    assert found["policies"]["temp"]["entry"] == "temp-2"
    first, second = found["choices"]["temp"]
    assert first["chosen"] and not second["chosen"] and first["settings"] == {"shift": 0.1}
    for seed in (1, 2):
        rows = [row_of(folder, f"temp-9/seed-{seed}", k, "validation") for k in ("a", "b")]
        expected = np.mean([np.average(row["losses"], weights=row["tokens"]) for row in rows])
        assert second["per_seed"][str(seed)] == pytest.approx(expected)
    losses = list(second["per_seed"].values())
    assert second["validation_loss"] == pytest.approx(np.mean(losses))
    assert first["validation_loss"] < second["validation_loss"]
    _, page = page_of(folder)
    assert "temp-9" in page.text and "chosen: temp-2" in page.text
    assert "| temp | temp-2 | shift=0.1 | **" in (folder / "comparison.md").read_text()


def test_a_choice_waits_for_a_seed_that_all_settings_have(tmp_path):
    slow = FakeEntry("temp-9", -0.3, "temp", validation_shift=0.2, seeds=(2,))
    folder = fake_comparison(tmp_path / "one", [PROP, GROUP[0], slow], (1, 2))
    found = compare_folder(folder)
    assert found["choices"]["temp"][1]["per_seed"]["1"] is None
    assert any("chosen on 1 of 2 seeds (2)" in text for text in found["warnings"])
    waiting = FakeEntry("temp-9", group="temp", seeds=())
    folder = fake_comparison(tmp_path / "none", [PROP, GROUP[0], waiting], (1, 2))
    found = compare_folder(folder)
    assert list(found["policies"]) == ["prop"]
    assert any("no setting is chosen yet" in text for text in found["warnings"])
    assert parse(write_comparison(folder).read_text()).unbalanced == []


def test_a_setting_that_diverged_is_not_chosen_and_holds_nothing_up(tmp_path):
    folder = fake_comparison(tmp_path, [PROP, *GROUP], (1,))

    def diverge(value):
        value["splits"]["validation"]["a"]["losses"][0] = None

    change(folder / "temp-2/seed-1/heldout.json", diverge)
    found = compare_folder(folder)
    assert found["policies"]["temp"]["entry"] == "temp-9"
    assert found["choices"]["temp"][0]["validation_loss"] is None


# --- unfinished, small, damaged -------------------------------------------------------------------


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


def test_what_is_close_is_not_marked_as_best(tmp_path):
    found = compare_folder(fake_comparison(tmp_path, [PROP, ALIKE], TEN))
    assert found["best"]["macro_loss"] is None
    assert {row["loss"] for row in found["best"]["subsets"].values()} == {None}
    assert 'class="best"' not in page_of(tmp_path)[0]
    assert "not shown to be more than noise" in sentences(found)[0]


def test_a_verdict_needs_the_interval_and_the_test():
    per_seed = dict.fromkeys("0123456789", -0.1)
    ten = {"low": -0.2, "high": -0.1, "p_corrected": 0.01, "per_seed": per_seed}
    assert verdict(ten, 3).startswith("which is more than noise (p = 0.01, corrected")
    assert "not shown" in verdict({**ten, "high": 0.1}, 3)
    assert "though its interval leaves zero out" in verdict({**ten, "p_corrected": 0.2}, 3)
    one = {**ten, "p_corrected": 1.0, "per_seed": {"1": -0.1}}
    assert "one seed cannot show that it is no chance (p = 1)" in verdict(one, 1)


# --- equal time -----------------------------------------------------------------------------------


def timed(name: str, seconds_per_step: float, look_every: int | None) -> FakeEntry:
    run = FakeRun(steps=8, interval=3, lag=1, groups=2,
                  seconds_per_step=seconds_per_step, look_every=look_every)  # fmt: skip
    return FakeEntry(name, run=run)


def test_losses_at_equal_time_lie_on_the_line_between_two_looks(tmp_path):
    folder = fake_comparison(tmp_path, [timed("prop", 1.0, 4), timed("hbo", 1.5, 4)], (1,))
    view = compare_folder(folder)["equal_time"]
    assert view["seconds"] == 8.0 and view["note"] is None
    log = (folder / "hbo/seed-1/run.jsonl").read_text().splitlines()
    looks = [json.loads(line) for line in log if '"validation"' in line]
    assert [(look["step"], look["seconds"]) for look in looks] == [(4, 6.0), (8, 12.0)]
    first, last = (np.mean([row["loss"] for row in look["subsets"].values()]) for look in looks)
    row = view["policies"]["hbo"]
    assert row["loss"] == pytest.approx(first + (last - first) / 3)
    assert row["step"] == pytest.approx(4 + 4 / 3) and row["end_loss"] == pytest.approx(last)
    assert view["policies"]["prop"]["loss"] == view["policies"]["prop"]["end_loss"]
    assert "8.0 s of training" in page_of(folder)[1].text


@pytest.mark.parametrize(
    ("slow", "note"),
    [(timed("hbo", 1.5, 8), "eval_strategy: steps"), (FakeEntry("hbo"), "how long they trained")],
)
def test_where_no_run_was_looked_at_on_the_way_it_says_so(tmp_path, slow, note):
    folder = fake_comparison(tmp_path, [timed("prop", 1.0, 4), slow], (1,))
    view = compare_folder(folder)["equal_time"]
    assert view["seconds"] is None and note in view["note"]
    assert note in page_of(folder)[1].text
    assert note.split()[0] in (folder / "comparison.md").read_text()


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
