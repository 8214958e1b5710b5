"""Intervals and tests against enumeration, plain loops, closed forms and simulated truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo import statistics
from hbo.errors import DataError
from hbo.statistics import (
    Measure,
    bootstrap,
    holm,
    interval,
    seed_weights,
    seeds_needed,
    sign_flip_p,
    smallest_p,
    stretch,
    student,
)

DIFFERENCES = st.lists(st.floats(-5, 5).map(lambda v: round(v, 3)), min_size=1, max_size=8)
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def made_up(policies: int, seeds: int, examples: tuple[int, ...], **options) -> Measure:
    rng = np.random.default_rng(3)
    values = [rng.gamma(2.0, 1.0, (policies, seeds, n)) for n in examples]
    weights = [rng.integers(1, 9, n).astype(float) for n in examples]
    present = options.pop("present", np.ones((policies, seeds), bool))
    return Measure(values, weights, present, **options)


# --- scores ---------------------------------------------------------------------------------------


def test_scores_are_means_over_tokens_and_a_run_that_is_not_there_has_none():
    values = np.array([[[1.0, 3.0], [9.0, 9.0]]])
    measure = Measure([values, None], [np.array([3.0, 1.0]), np.ones(4)], np.array([[True, False]]))
    scores = measure.scores()
    assert scores[0, 0, 0] == 1.5 and np.isnan(scores[0, 1]).all() and np.isnan(scores[0, 0, 1])


def test_runs_of_other_examples_are_refused():
    with pytest.raises(DataError, match="measured on other examples"):
        Measure([np.zeros((1, 2, 3))], [np.ones(4)], np.ones((1, 2), bool))


# --- bootstrap ------------------------------------------------------------------------------------


def test_replicates_are_what_plain_loops_give():
    measure = made_up(2, 3, (4, 1, 6))
    found = bootstrap(measure, replicates=20, seed=5)
    counted = np.random.default_rng([5, 0, 1, 1, 1]).integers(0, 3, (20, 3))
    drawn = [
        np.random.default_rng([5, 1, k]).integers(0, n, (20, max(n - 1, 1)))
        for k, n in enumerate((4, 1, 6))
    ]
    for b in range(20):
        weights = [
            1 / 3 + stretch(3) * ((counted[b] == s).sum() / 3 - 1 / 3) for s in range(3)
        ]  # fmt: skip
        for p in range(2):
            losses = np.zeros((3, 3))
            for s, k in itertools.product(range(3), range(3)):
                top = sum(measure.values[k][p, s, i] * measure.weights[k][i] for i in drawn[k][b])
                losses[s, k] = top / sum(measure.weights[k][i] for i in drawn[k][b])
            assert found.macro[b, p] == pytest.approx(losses.mean(axis=1))
            assert found.worst[b, p] == pytest.approx(losses.max(axis=1))
            assert found.subsets[b, p] == pytest.approx(weights @ losses)


def test_draws_of_many_examples_are_made_in_pieces_that_change_nothing(monkeypatch):
    measure = made_up(2, 3, (4, 1, 6))
    whole = bootstrap(measure, replicates=40)
    sizes = []
    counts = statistics._counts
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 30)
    monkeypatch.setattr(
        statistics, "_counts", lambda n, rows, rng: sizes.append(n * rows) or counts(n, rows, rng)
    )
    pieces = bootstrap(measure, replicates=40)
    assert max(sizes) == 30 and len(sizes) == 3 * 8
    assert pieces.macro == pytest.approx(whole.macro, rel=1e-12)
    assert pieces.subsets == pytest.approx(whole.subsets, rel=1e-12)
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 5)  # fewer than a subset's examples
    assert bootstrap(measure, 3).macro == pytest.approx(whole.macro[:3], rel=1e-12)


def test_examples_alone_have_the_variance_of_a_mean():
    values = np.random.default_rng(0).normal(size=(1, 1, 7))
    found = bootstrap(Measure([values], [np.ones(7)], np.ones((1, 1), bool)), replicates=40_000)
    assert found.macro[:, 0, 0].var() == pytest.approx(values.var(ddof=1) / 7, rel=0.03)


def test_seeds_alone_have_the_variance_of_a_mean_stretched_to_student_s_interval():
    values = np.array([0.3, 1.1, 0.2, 0.9])
    weights = seed_weights(np.ones(4, bool), 40_000, seed=1)
    expected = values.var(ddof=1) / 4 * (student(3) / 1.959964) ** 2
    assert (weights @ values).var() == pytest.approx(expected, rel=0.03)


def test_seeds_that_are_not_there_weigh_nothing_and_the_same_ones_weigh_the_same():
    present = np.array([True, False, True, True])
    weights = seed_weights(present, 50, seed=2)
    assert weights.sum(axis=1) == pytest.approx(np.ones(50)) and not weights[:, 1].any()
    assert (weights == seed_weights(present, 50, seed=2)).all()
    assert seed_weights(np.array([False, True]), 3, seed=0).tolist() == [[0.0, 1.0]] * 3
    assert not seed_weights(np.array([False, False]), 3, seed=0).any()


def test_values_of_runs_that_are_not_there_are_never_used():
    present = np.array([[True, True, True], [True, False, True]])
    measure = made_up(2, 3, (5, 6), present=present)
    first = bootstrap(measure, replicates=50)
    for values in measure.values:
        values[1, 1] = np.nan
    second = bootstrap(measure, replicates=50)
    assert np.isfinite(second.macro).all() and (first.subsets == second.subsets).all()
    assert (first.worst == second.worst).all()


def test_the_worst_is_found_in_each_run_and_each_replicate():
    values = [np.full((1, 2, 3), 2.0), np.full((1, 2, 3), 1.0)]
    values[1][0, 1] = 4.0
    ones = [np.ones(3)] * 2
    measure = Measure(values, ones, np.ones((1, 2), bool))
    assert bootstrap(measure, 10).worst[:, 0].tolist() == [[2.0, 4.0]] * 10
    lowest = Measure(values, ones, np.ones((1, 2), bool), np.min)
    assert bootstrap(lowest, 10).worst[:, 0].tolist() == [[1.0, 2.0]] * 10


def test_a_policy_differs_from_its_like_by_nothing_and_from_a_shifted_one_by_the_shift():
    measure = made_up(1, 4, (9, 20))
    twice = [np.concatenate([v, v, v + 0.25]) for v in measure.values]
    found = bootstrap(Measure(twice, measure.weights, np.ones((3, 4), bool)), replicates=300)
    alike = found.over_seeds(found.macro[:, 0] - found.macro[:, 1], np.ones(4, bool))
    shifted = found.over_seeds(found.macro[:, 2] - found.macro[:, 0], np.ones(4, bool))
    assert interval(alike) == (0.0, 0.0)
    assert interval(shifted) == pytest.approx((0.25, 0.25))


def test_the_middle_of_the_replicates():
    assert interval(np.arange(10_001.0)) == pytest.approx((250.0, 9750.0))


@pytest.mark.parametrize("spread", [(1.0, 0.2), (0.3, 1.5)], ids=["seeds", "examples"])
def test_intervals_hold_the_truth_about_as_often_as_they_say(spread):
    of_seeds, of_examples = spread
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(300):
        values = of_seeds * rng.normal(size=(1, 4, 1)) + of_examples * rng.normal(size=(1, 1, 20))
        values = values + 0.1 * rng.normal(size=(1, 4, 20))
        found = bootstrap(Measure([values], [np.ones(20)], np.ones((1, 4), bool)), 400, trial)
        low, high = interval(found.over_seeds(found.macro[:, 0], np.ones(4, bool)))
        held += low <= 0.0 <= high
    # Unstretched, four seeds would hold it 81 times in 100 where seeds are what varies.
    assert 0.91 <= held / 300 <= 0.995


# --- Student's t ----------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 9, 15, 60])
def test_the_quantile_of_student_s_t_by_integrating_its_density(freedom):
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    scale /= math.sqrt(freedom * math.pi)
    x = np.linspace(0.0, student(freedom), 200_001)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert 0.5 + np.trapezoid(density, x) == pytest.approx(0.975, abs=2e-5)


# --- tests ----------------------------------------------------------------------------------------


def test_small_sign_flips_by_hand():
    assert sign_flip_p([1.0]) == 1.0
    assert sign_flip_p([1.0, 2.0]) == 0.5
    assert sign_flip_p([3.0, -1.0, 2.0]) == 0.5  # sums of at least 4: 4, 6 and their negatives
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1] * 10) == smallest_p(10) == 2 / 1024


@given(DIFFERENCES)
def test_every_sign_pattern_is_counted(differences):
    reached = abs(math.fsum(differences))
    patterns = itertools.product((-1, 1), repeat=len(differences))
    sums = [abs(math.fsum(s * d for s, d in zip(p, differences, strict=True))) for p in patterns]
    expected = sum(total >= reached - 1e-9 for total in sums) / len(sums)
    assert sign_flip_p(differences) == expected


@given(DIFFERENCES, st.randoms(use_true_random=False), st.floats(0.1, 10))
def test_the_p_value_knows_neither_order_nor_sign_nor_unit(differences, random, unit):
    p = sign_flip_p(differences)
    shuffled = random.sample(differences, len(differences))
    assert sign_flip_p(shuffled) == p == sign_flip_p([-d for d in differences])
    assert sign_flip_p([unit * d for d in differences]) == p
    assert smallest_p(len(differences)) <= p <= 1.0


def test_beyond_twenty_seeds_patterns_are_drawn():
    rng = np.random.default_rng(4)
    differences = rng.normal(0.4, 1.0, 20)
    exact = sign_flip_p(differences)
    drawn = sign_flip_p([*differences, 0.0])  # a difference of nothing changes no sum
    assert drawn == pytest.approx(exact, abs=0.005) and drawn != exact
    assert sign_flip_p([1.0] * 25) == 1 / 100_001


def test_chance_alone_is_seldom_called_more():
    rng = np.random.default_rng(8)
    found = [sign_flip_p(rng.normal(size=8)) < 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(found) < 0.06  # the most that is possible below 0.05 is 12 / 256


def test_how_many_seeds_a_claim_needs():
    assert [smallest_p(seeds) for seeds in (1, 2, 3, 5, 6)] == [1.0, 0.5, 0.25, 0.0625, 0.03125]
    assert smallest_p(3, comparisons=7) == 1.0
    for comparisons in (1, 2, 7, 11, 40):
        seeds = seeds_needed(comparisons)
        assert smallest_p(seeds, comparisons) < 0.05 <= smallest_p(seeds - 1, comparisons)


def test_holm_s_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]


@given(P_VALUES, st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_never_flatters(p_values, random):
    corrected = holm(p_values)
    assert all(p <= c <= 1.0 for p, c in zip(p_values, corrected, strict=True))
    assert min(corrected) == min(1.0, len(p_values) * min(p_values))
    ranks = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [corrected[i] for i in ranks] == sorted(corrected)
    order = random.sample(range(len(p_values)), len(p_values))
    assert holm([p_values[i] for i in order]) == [corrected[i] for i in order]
