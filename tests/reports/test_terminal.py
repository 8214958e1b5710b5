"""The closing table: every subset, within the width, whatever the names."""

from __future__ import annotations

from rich.cells import cell_len

from hbo.reports import closing_table, read_run
from tests.reports.fake_run import AWKWARD, EXAMS, FakeRun, fake_run


def test_every_number_within_a_hundred_columns(tmp_path):
    summary = fake_run(tmp_path, EXAMS, FakeRun(steps=12))
    run = read_run(tmp_path)
    text = closing_table(summary, dict(zip(run.subsets, run.prior.tolist(), strict=True)))
    assert max(cell_len(line) for line in text.splitlines()) <= 100
    for name, subset in summary["subsets"].items():
        line = next(line for line in text.splitlines() if line.strip().startswith(name))
        before, after = subset["holdout_loss_before"], subset["holdout_loss_after"]
        assert f"{before:.3f} → {after:.3f}" in line and f"{subset['train_loss']:.3f}" in line
    macro = next(line for line in text.splitlines() if line.strip().startswith("macro"))
    assert f"→ {summary['macro_holdout_loss_after']:.3f}" in macro
    assert "hbo, 12 steps in 5 min 12 s; balancing took 5.7% of it (17.9 s)" in text
    assert "\x1b" not in text


def test_names_are_no_markup_and_cut_to_fit(tmp_path):
    text = closing_table(fake_run(tmp_path, AWKWARD, FakeRun(steps=4)))
    assert "[red]markup" in text and "…" in text and "\x07" not in text and "\u202e" not in text
    assert max(cell_len(line) for line in text.splitlines()) <= 100
    assert (
        closing_table(fake_run(tmp_path, AWKWARD, FakeRun(steps=4)), color=True).count("\x1b") > 0
    )


def test_an_accuracy_column_only_where_something_is_graded(tmp_path):
    without = closing_table(fake_run(tmp_path, EXAMS, FakeRun(steps=4, accuracy=False)))
    assert "accuracy" not in without and "macro" in without


def test_an_empty_summary_is_a_table_of_dashes():
    assert "macro" in closing_table({})


def test_a_narrow_terminal_loses_columns_before_digits(tmp_path):
    summary = fake_run(tmp_path, EXAMS, FakeRun(steps=12))
    run = read_run(tmp_path)
    prior = dict(zip(run.subsets, run.prior.tolist(), strict=True))
    text = closing_table(summary, prior, width=80)
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "rows" not in text and "grade" in text
    lines = [line for line in text.splitlines() if "→" in line and "prior" not in line]
    assert len(lines) == len(EXAMS) + 1
    assert all(line.endswith(("%", "–")) for line in lines)
    for subset in summary["subsets"].values():
        assert f"→ {subset['holdout_loss_after']:.3f}" in text
