"""Comparisons: settings are chosen on validation examples alone, and on the same seeds."""

from __future__ import annotations

import numpy as np
import pytest

from hbo.reports import compare_folder, write_comparison
from tests.reports.comparisons import PROP, change, page_of, row_of
from tests.reports.fake_run import FakeEntry, fake_comparison
from tests.reports.pages import parse

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


def test_a_setting_that_lacks_a_seed_of_another_is_not_chosen(tmp_path):
    # Better by far on the one seed it has: what a run whose weights were lost leaves behind.
    lost = FakeEntry("temp-9", -0.3, "temp", validation_shift=-0.25, seeds=(2,))
    folder = fake_comparison(tmp_path, [PROP, GROUP[0], lost], (1, 2))
    found = compare_folder(folder)
    first, second = found["choices"]["temp"]
    assert found["policies"]["temp"]["entry"] == "temp-2" and first["chosen"]
    assert found["policies"]["temp"]["seeds"] == [1, 2]
    assert (first["seeds"], second["seeds"]) == ([1, 2], [2])
    assert second["per_seed"]["1"] is None and second["validation_loss"] < first["validation_loss"]
    assert any("could not be chosen: temp-9 (1 of 2)" in text for text in found["warnings"])
    _, page = page_of(folder)
    assert "temp-9 (1 of 2)" in page.text and "1 of 2 (2)" in page.text
    assert "| 1 of 2 (2) |" in (folder / "comparison.md").read_text()


def test_where_no_setting_has_all_seeds_those_with_most_are_compared_on_what_they_share(tmp_path):
    settings = [
        FakeEntry("temp-2", 0.1, "temp", validation_shift=-0.2, seeds=(1, 2)),
        FakeEntry("temp-9", 0.1, "temp", validation_shift=0.2, seeds=(2, 3)),
    ]
    found = compare_folder(fake_comparison(tmp_path, [PROP, *settings]))
    first, second = found["choices"]["temp"]
    assert first["chosen"] and first["seeds"] == second["seeds"] == [2]
    assert second["validation_loss"] == pytest.approx(second["per_seed"]["2"])
    assert any("chosen on 1 of 3 seeds (2)" in text for text in found["warnings"])


@pytest.mark.parametrize("seeds", [((), ()), ((1,), (2,))], ids=["none", "none in common"])
def test_a_choice_waits_for_a_seed_to_compare_on(tmp_path, seeds):
    settings = [FakeEntry(f"temp-{n}", group="temp", seeds=of) for n, of in enumerate(seeds)]
    folder = fake_comparison(tmp_path, [PROP, *settings], (1, 2))
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
