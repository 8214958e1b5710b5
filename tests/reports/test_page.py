"""The page: self-contained, escaped, balanced, readable in the dark, whole with parts missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hbo.errors import ConfigError, DataError, EnvironmentProblem
from hbo.reports import closing_table, read_run, write_report
from hbo.reports.page import render_page
from tests.reports.fake_run import AWKWARD, EXAMS, FakeRun, fake_run, many_subsets
from tests.reports.pages import Page, parse

SMALL = FakeRun(steps=16, interval=4, lag=2)
TWO = {"a": 40, "b": 10}


def page_of(folder: Path, sizes: dict[str, int], run: FakeRun = SMALL) -> tuple[str, Page]:
    fake_run(folder, sizes, run)
    text = render_page([read_run(folder)])
    return text, parse(text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page_of(tmp_path_factory.mktemp("run"), EXAMS)


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return page_of(tmp_path_factory.mktemp("run"), AWKWARD)


def test_nothing_is_loaded_and_no_script_runs(full):
    text, page = full
    assert not page.all("script") and not page.all("link") and not page.all("img")
    assert not page.all("iframe") and not page.values("src") and not page.values("srcset")
    assert all(target.startswith("#") for target in page.values("href"))
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "://" not in text
    assert not [name for e in page.elements for name in e.attributes if name.startswith("on")]
    policy = [e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes]
    assert policy and policy[0].startswith("default-src 'none'")


@pytest.mark.parametrize("which", ["full", "awkward"])
def test_tags_balance_and_ids_are_unique(which, request):
    _, page = request.getfixturevalue(which)
    assert page.unbalanced == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for attribute in ("aria-labelledby",):
        assert set(page.values(attribute)) <= set(ids)
    used = {target[1:] for target in page.values("href")}
    used |= {clip[5:-1] for clip in page.values("clip-path")}
    assert used <= set(ids)


def test_names_are_text_and_never_markup(awkward):
    text, page = awkward
    assert "<img" not in text and "<b>bold" not in text and "[red]markup" in page.text
    assert "</script><img src=x onerror=alert(1)>" in page.text
    assert "العربية" in page.text and "<bdi>العربية</bdi>" in text
    assert not any(ord(c) < 0x20 and c != "\n" for c in text) and "\u202e" not in text
    assert "tab␉here␇ and ⟨202E⟩evil" in page.text


def test_light_and_dark_mode_define_the_same_colours(full):
    text, page = full
    style = text[text.index("<style>") : text.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    colours = set(re.findall(r"(--[a-z0-9-]+):", light.split("}")[0]))
    assert colours == set(re.findall(r"(--[a-z0-9-]+):", dark.split("}")[0]))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", text))
    assert used - {"--c", "--v", "--t", "--l", "--r", "--p"} <= colours
    drawn = {
        e.attributes.get("style", "") for tag in ("path", "text", "use") for e in page.all(tag)
    }
    assert not [style for style in drawn if re.search(r"#[0-9a-f]{6}", style)]  # no fixed colour


def test_phone_and_screen_reader(full):
    text, page = full
    assert any("width=device-width" in e.attributes.get("content", "") for e in page.all("meta"))
    assert "@media (max-width: 640px)" in text
    assert all(e.attributes.get("role") == "img" for e in page.all("svg"))
    assert all(len(e.attributes.get("aria-label", "")) > 20 for e in page.all("svg"))
    assert page.all("html")[0].attributes["lang"] == "en"
    assert len(page.all("h1")) == 1
    for region in (e for e in page.elements if e.attributes.get("class") == "scroll"):
        assert region.attributes["tabindex"] == "0"


def test_the_numbers_of_the_summary_are_on_the_page(tmp_path):
    summary = fake_run(tmp_path, EXAMS, SMALL)
    page = parse(render_page([read_run(tmp_path)]))
    assert f"from {summary['macro_holdout_loss_before']:.3f}" in page.text
    for name, subset in summary["subsets"].items():
        assert name in page.text
        assert f"{subset['holdout_loss_after']:.3f}" in page.text
    assert summary["stream_sha256"] in page.text and summary["mixture_fingerprint"] in page.text
    assert "torch" in page.text and "max_steps: 16" in page.text
    assert "1 warning" in page.text and "passes 3 times" in page.text
    assert "5.7% of the wall time" in page.text


def test_every_update_is_listed_with_its_effective_draw(full):
    _, page = full
    assert "3 updates" in page.text
    for step in (4, 8, 12):
        assert f"{step}{(step + 2) * 8}{step + 2}" in page.text.replace("\n", "")


@pytest.mark.parametrize(
    ("run", "there", "not_there"),
    [
        (FakeRun(steps=8, interval=4, finished=False), "no summary", "Held-out loss and accuracy"),
        (FakeRun(steps=8, moves=False, policy="uni"), "shares of draws were fixed", "Global Actor"),
        (FakeRun(steps=8, interval=4, accuracy=False), "Loss while training", "Accuracy, macro"),
        (FakeRun(steps=8, interval=4, local=False), "Global Actor", "Local Actors"),
        (FakeRun(steps=8, interval=4, groups=1), "Global Actor", "Local Actors"),
    ],
)
def test_missing_parts_leave_a_whole_page(tmp_path, run, there, not_there):
    _, page = page_of(tmp_path, TWO, run)
    assert page.unbalanced == []
    assert there in page.text and not_there not in page.text
    assert not re.search(r"\bnan\b|\bNone\b", page.text)


def test_a_run_that_only_started(tmp_path):
    fake_run(tmp_path, TWO, FakeRun(steps=4))
    log = tmp_path / "run.jsonl"
    log.write_text(log.read_text().splitlines()[0] + '\n{"event": "st')
    (tmp_path / "summary.json").unlink()
    page = parse(render_page([read_run(tmp_path)]))
    assert "not finished" in page.text and "a" in page.text and page.unbalanced == []


def test_a_hundred_subsets_stay_readable(tmp_path):
    run = FakeRun(steps=3, interval=2, lag=1, draws_per_step=64, groups=2)
    text, page = page_of(tmp_path, many_subsets(100), run)
    assert len(text) < 3_000_000
    assert "92 more subsets in grey" in page.text and "subset-099" in page.text
    assert len(page.all("svg")) < 70
    assert "88 more subsets" in page.text


def test_one_report_of_several_runs(tmp_path):
    for index, (policy, seed) in enumerate([("prop", 1), ("prop", 2), ("hbo", 1), ("hbo", 2)]):
        run = FakeRun(policy=policy, seed=seed, steps=8, interval=4, moves=policy == "hbo")
        fake_run(tmp_path / f"r{index}", TWO, run)
    path = write_report([tmp_path / f"r{index}" for index in range(4)])
    assert path == tmp_path / "report.html"
    page = parse(path.read_text(encoding="utf-8"))
    assert page.unbalanced == [] and "2 policies compared on 2 subsets" in page.text
    assert "±" in page.text and "may be chance" in page.text
    assert len(page.values("id")) == len(set(page.values("id")))
    assert len([e for e in page.all("details") if e.attributes.get("class") == "run"]) == 4


def test_runs_that_differ_in_subsets_or_share_a_seed(tmp_path):
    fake_run(tmp_path / "x", TWO, SMALL)
    fake_run(tmp_path / "y", {"b": 10, "c": 30}, SMALL)
    text = render_page([read_run(tmp_path / "x"), read_run(tmp_path / "y")])
    assert "hbo (x)" in text and "hbo (y)" in text and "on 3 subsets" in text
    assert "different subsets" in text and "Lowest held-out loss" not in text


def test_the_best_is_marked_only_where_numbers_differ(tmp_path):
    fake_run(tmp_path / "x", TWO, SMALL)
    fake_run(tmp_path / "y", TWO, SMALL)
    text = render_page([read_run(tmp_path / "x"), read_run(tmp_path / "y")])
    assert 'class="best' not in text


def test_an_update_too_late_for_any_draw_is_said(tmp_path):
    fake_run(tmp_path / "in time", TWO, FakeRun(steps=8, interval=3, lag=1))
    fake_run(tmp_path / "late", TWO, FakeRun(steps=8, interval=3, lag=2))
    assert "too late" not in render_page([read_run(tmp_path / "in time")])
    assert "1 update came too late" in render_page([read_run(tmp_path / "late")])


def test_error_bars_are_announced_only_where_there_are_some(tmp_path):
    fake_run(tmp_path, TWO, SMALL)
    assert "bars are standard errors" in render_page([read_run(tmp_path)])
    log = tmp_path / "run.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        if event["event"] == "update":
            event["global"]["errors"] = dict.fromkeys(TWO)
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert "bars are standard errors" not in render_page([read_run(tmp_path)])


def test_accuracy_stands_alone_where_it_was_not_measured_before(tmp_path):
    summary = fake_run(tmp_path, TWO, SMALL)
    for subset in summary["subsets"].values():
        subset["holdout_accuracy_before"] = None
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    log = tmp_path / "run.jsonl"
    lines = [line for line in log.read_text().splitlines() if '"evaluation"' not in line]
    log.write_text("\n".join(lines) + "\n")
    run = read_run(tmp_path)
    before, after = run.accuracy.macro
    assert before != before and after == pytest.approx(run.accuracy.after.mean())
    assert "it was not measured before" in render_page([run])
    macro = next(line for line in closing_table(summary).splitlines() if "macro" in line)
    assert macro.endswith(f"– → {after:.0%}")


def test_where_the_page_goes(tmp_path):
    fake_run(tmp_path / "run", TWO, SMALL)
    assert write_report(tmp_path / "run") == tmp_path / "run" / "report.html"
    elsewhere = tmp_path / "new" / "page.html"
    assert write_report([tmp_path / "run"], elsewhere) == elsewhere and elsewhere.is_file()
    assert list(elsewhere.parent.iterdir()) == [elsewhere]  # nothing half-written is left


def test_the_same_run_gives_the_same_page(tmp_path):
    fake_run(tmp_path, TWO, SMALL)
    assert render_page([read_run(tmp_path)]) == render_page([read_run(tmp_path)])


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="no run to report on"):
        write_report([])
    with pytest.raises(DataError, match=r"run\.jsonl is missing"):
        write_report(tmp_path)
    (tmp_path / "run.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match="holds no event"):
        write_report(tmp_path)
    fake_run(tmp_path / "run", TWO, SMALL)
    (tmp_path / "run" / "summary.json").write_text('{"policy": ')
    with pytest.raises(DataError, match=r"summary\.json: not valid JSON"):
        write_report(tmp_path / "run")
    fake_run(tmp_path / "other", TWO, SMALL)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot write the report"):
        write_report(tmp_path / "other", blocked / "report.html")


def test_numbers_that_are_null_or_of_another_kind_are_passed_over(tmp_path):
    fake_run(tmp_path, TWO, SMALL)
    log = tmp_path / "run.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        if event["event"] == "update":
            event["global"]["rewards"]["a"] = None
            event["local"]["a"]["rewards"] = None
            event["local"]["b"] = None
            event["seconds"] = None
        if event["event"] == "step":
            event["subsets"].pop("b", None)
            event["loss"] = None
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    page = parse(render_page([read_run(tmp_path)]))
    assert page.unbalanced == [] and not re.search(r"\bnan\b", page.text)


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named_with_its_remedy(tmp_path, monkeypatch, library):
    import sys

    fake_run(tmp_path, TWO, SMALL)
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("page", "compare", "view", "plots", "words"):
        monkeypatch.delitem(sys.modules, f"hbo.reports.{name}", raising=False)
        monkeypatch.delattr(f"hbo.reports.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentProblem, match=r"(?i)needs .*pip install 'hbo\[report\]'"):
        write_report(tmp_path)
    assert closing_table({})  # what needs no charts still works
