"""Comparisons at equal training time."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hbo.reports import compare_folder
from tests.reports.comparisons import change, page_of
from tests.reports.fake_run import FakeEntry, FakeRun, fake_comparison


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
    ours = [look for look in looks if "perplexity" in look["macro"]]
    looks = [look for look in looks if look not in ours]
    assert [look["step"] for look in ours] == [8]  # weighs tokens otherwise, so is not on the line
    assert [(look["step"], look["seconds"]) for look in looks] == [(4, 6.0), (8, 12.0)]
    first, last = (np.mean([row["loss"] for row in look["subsets"].values()]) for look in looks)
    row = view["policies"]["hbo"]
    assert row["loss"] == pytest.approx(first + (last - first) / 3)
    assert row["step"] == pytest.approx(4 + 4 / 3) and row["end_loss"] == pytest.approx(last)
    assert view["policies"]["prop"]["loss"] == view["policies"]["prop"]["end_loss"]
    assert "8.0 s of training" in page_of(folder)[1].text


def test_a_policy_that_ended_before_counts_with_its_last_step_or_not_at_all(tmp_path):
    # Looked at after 3 and 6 of 8 steps, the fast one has no loss of its end.
    short, slow = timed("prop", 1.0, 3), timed("hbo", 1.5, 4)
    folder = fake_comparison(tmp_path / "short", [short, slow], (1,))
    view = compare_folder(folder)["equal_time"]
    assert view["seconds"] is None and view["policies"] == {}
    assert "the last evaluation of prop (step 6 of 8)" in view["note"]
    assert "Set training.eval_steps so that the last step is evaluated." in view["note"]
    assert "step 6 of 8" in page_of(folder)[1].text
    # The slow one was looked at after that time, but its own end is not known.
    short, slow = timed("prop", 1.0, 4), timed("hbo", 1.5, 3)
    folder = fake_comparison(tmp_path / "slow", [short, slow], (1,))
    view = compare_folder(folder)["equal_time"]
    assert view["note"] is None and view["policies"]["hbo"]["end_loss"] is None
    assert view["policies"]["prop"]["step"] == 8 and page_of(folder)[1].unbalanced == []


def test_a_look_a_moment_before_the_end_of_training_is_that_of_the_end(tmp_path):
    folder = fake_comparison(tmp_path, [timed("prop", 1.0, 4), timed("hbo", 1.5, 4)], (1,))
    before = compare_folder(folder)["equal_time"]["policies"]["prop"]["loss"]
    change(folder / "prop/seed-1/summary.json", lambda v: v.update(training_seconds=8.01))
    view = compare_folder(folder)["equal_time"]
    assert view["seconds"] == 8.01 and view["policies"]["prop"]["loss"] == before


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
