"""The toy learner, its best mixture, and policies on it."""

import time

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.mixture import Mixture
from hbo.policies import HBO, POLICIES, make_policy
from hbo.signals import CELL_SIGNALS, HELDOUT_LOSS, LOOKAHEAD_GAIN, UNCERTAINTIES, WHOLE_SIGNALS
from hbo.simulate import (
    ToyLearner,
    render_standings,
    render_text,
    runnable,
    side_by_side,
    simulate,
    sparkline,
)
from hbo.simulate.measured import LOOKAHEAD_DRAWS, Instruments
from tests.policies.recordings import write_recording

REQUIRED = {
    "static": {"weights": [1, 2, 3]},
    "schedule": {"points": [{"step": 0, "weights": [1, 1, 1]}, {"step": 20, "weights": [3, 1, 1]}]},
}


def toy(**changes):
    settings = {"num_subsets": 4, "num_groups": 2, "draws": 2000, "seed": 3}
    return ToyLearner.random(**{**settings, **changes})


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_runs_and_repeats_itself(name, tmp_path):
    recorded = write_recording(tmp_path / "run.jsonl", np.full((3, 3, 2), 1 / 6), steps=(10, 20))
    required = {**REQUIRED, "replay": {"run": recorded}}
    policy = make_policy(name, update_interval=10, **required.get(name, {}))
    settings = {"num_subsets": 3, "num_groups": 2, "steps": 40, "imbalance": 2.0, "seed": 5}
    one, other = (simulate(policy, **settings) for _ in range(2))
    assert (one.probabilities == other.probabilities).all()
    assert (one.losses == other.losses).all()
    assert one.draws.sum() == 40 * 16
    assert one.steps[0] == 0
    assert one.steps[-1] == 40
    assert one.macro[-1] < one.macro[0]
    assert one.probabilities.sum(axis=(1, 2)) == pytest.approx(np.ones(len(one.steps)))


@pytest.mark.parametrize("num_subsets", [8, 300])
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_runs_with_few_subsets_and_with_many(name, num_subsets, tmp_path):
    flat = np.full((3, num_subsets, 4), 1 / (4 * num_subsets))
    required = {
        "static": {"weights": [1] * num_subsets},
        "schedule": {"points": [(0, [1] * num_subsets), (20, [2] + [1] * (num_subsets - 1))]},
        "replay": {"run": write_recording(tmp_path / "run.jsonl", flat, steps=(10, 20))},
    }
    policy = make_policy(name, update_interval=10, **required.get(name, {}))
    result = simulate(policy, num_subsets=num_subsets, steps=20, imbalance=1.2, seed=1)
    assert result.probabilities.shape[1:] == (num_subsets, 4)
    assert result.probabilities.sum(axis=(1, 2)) == pytest.approx(np.ones(len(result.steps)))
    assert np.isfinite(result.macro).all()


def test_losses_fall_with_draws_and_repeats_teach_less():
    learner = toy()
    size = learner.sizes[0, 0]
    draws = np.zeros_like(learner.sizes)
    seen = []
    for passes in range(4):
        draws[0, 0] = passes * size
        seen.append(learner.losses(draws)[0, 0] - learner.floor[0, 0])
    gains = -np.diff(np.log(seen)) * learner.scale[0, 0]  # what each pass was worth, in draws
    assert gains[0] == pytest.approx(size)
    assert (np.diff(gains) < 0).all()
    assert (learner.losses(draws)[1:] == learner.losses(np.zeros_like(draws))[1:]).all()


def test_transfer_teaches_cells_that_were_not_drawn():
    draws = np.zeros((4, 2))
    draws[0, 0] = 50
    untouched = toy().losses(0 * draws)[3]
    assert (toy(transfer=0.5).losses(draws)[3] < untouched).all()
    assert (toy().losses(draws)[3] == untouched).all()


def test_repeats_do_harm_on_held_out_examples_only():
    learner = toy(overfit=0.1)
    draws = 3 * learner.sizes
    assert (learner.losses(draws) == toy().losses(draws)).all()
    assert learner.heldout(draws) == pytest.approx(learner.losses(draws) + 0.2)
    assert (learner.heldout(learner.sizes) == learner.losses(learner.sizes)).all()


@pytest.mark.parametrize(
    ("transfer", "overfit", "total"),
    # With the last, a draw does harm wherever it goes, and they have to go somewhere.
    [(0.0, 0.0, 2000), (0.4, 0.0, 2000), (0.0, 0.1, 2000), (0.3, 0.05, 2000), (0.0, 0.5, 6000)],
)
def test_no_other_mixture_beats_the_best_one(transfer, overfit, total):
    learner = toy(transfer=transfer, overfit=overfit)
    best = learner.best(total)
    assert best.sum() == pytest.approx(1.0)
    lowest = learner.macro(learner.heldout(best * total))
    generator = np.random.default_rng(1)
    for size in (0.05, 0.5):
        for _ in range(200):
            other = best * generator.lognormal(0.0, size, best.shape) + 1e-4 * generator.random()
            other /= other.sum()
            assert learner.macro(learner.heldout(other * total)) > lowest - 1e-9


def test_a_subset_that_learns_nothing_gets_nothing_of_the_best_mixture():
    learner = toy()
    hopeless = learner.gap.copy()
    hopeless[1] = 1e-12
    learner = ToyLearner(learner.sizes, learner.floor, hopeless, learner.scale)
    assert learner.best(2000)[1].max() < 1e-6


def test_following_the_best_mixture_leaves_next_to_no_regret():
    learner = toy(draws=3200)
    best = learner.best(3200)
    static = make_policy("schedule", points=[(0, best.tolist())])
    fixed = simulate(static, steps=200, learner=learner)
    assert 0 <= fixed.regret + 1e-3 < 0.008
    assert fixed.regret < simulate("prop", steps=200, learner=learner).regret


@pytest.fixture(scope="module")
def standings():
    """Policies on two standard toys."""
    names = ["prop", "temp", "hbo", "odm", "loss", "dynamixsft", "doremi", "dynamic-loading"]
    return {one.policy: one for one in side_by_side(names, range(2), steps=200)}


@pytest.mark.parametrize("name", ["hbo", "odm", "loss", "dynamixsft"])
def test_policies_that_follow_what_is_left_to_learn_beat_proportional_shares(standings, name):
    assert standings[name].regret < 0.5 * standings["prop"].regret


@pytest.mark.parametrize("name", ["doremi", "dynamic-loading"])
def test_policies_that_chase_the_last_subset_help_it_at_the_cost_of_the_others(standings, name):
    assert standings[name].worst < standings["prop"].worst - 0.2
    assert standings[name].regret > 2 * standings["hbo"].regret


def test_msft_stops_a_small_subset_that_over_fits_near_its_best_time():
    learner = ToyLearner(
        sizes=np.array([[400], [40]]),
        floor=np.full((2, 1), 0.5),
        gap=np.ones((2, 1)),
        scale=np.array([[2000.0], [40.0]]),
        overfit=0.06,
    )
    stopped, fixed = (simulate(name, steps=200, learner=learner) for name in ("msft", "prop"))
    assert stopped.regret < 0.2 * fixed.regret
    assert stopped.probabilities[-1].ravel().tolist() == [1.0, 0.0]
    assert stopped.notes["subset-stopped"] == 1


def test_without_over_fitting_msft_is_its_prior():
    one, other = (simulate(name, steps=60, seed=2) for name in ("msft", "prop"))
    assert (one.draws == other.draws).all()


def test_a_curriculum_draws_from_what_is_open():
    policy = make_policy("curriculum", length=30, update_interval=10)
    result = simulate(policy, steps=40, imbalance=1.0)
    groups = result.probabilities.sum(axis=1)
    assert groups[0] == pytest.approx([1, 0, 0, 0])
    assert groups[2] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert groups[-1] == pytest.approx(np.full(4, 0.25))


def test_a_policy_that_updates_before_the_first_step_is_asked_to():
    first = simulate("dynamic-loading", steps=60)
    assert first.steps[:3].tolist() == [0, 0, 2]
    assert (first.probabilities[1] == first.probabilities[0]).all()
    moved = simulate(make_policy("hbo-paper", update_interval=10), steps=20)
    assert moved.steps.tolist() == [0, 0, 10, 20]
    assert (moved.probabilities[1] != moved.probabilities[0]).any()


def measured(draws=0.0, **changes):
    learner = toy(**changes)
    instruments = Instruments(learner, Mixture(tuple("abcd"), learner.sizes), seed=4)
    return learner, instruments.whole(np.asarray(draws * learner.sizes))


def test_every_signal_is_measured_and_finite():
    signals = measured(draws=1.5, transfer=0.3, overfit=0.1)[1]
    assert set(signals) == WHOLE_SIGNALS | CELL_SIGNALS
    for name, values in signals.items():
        assert values.shape == ((4, 2) if name in CELL_SIGNALS else (4,))
        assert np.isfinite(values).all()


def test_held_out_losses_err_by_a_constant_and_uncertainty_rises_with_them():
    before, after = measured(), measured(draws=2.0)
    errors = [
        signals[HELDOUT_LOSS] - (learner.shares * learner.heldout(draws * learner.sizes)).sum(1)
        for (learner, signals), draws in ((before, 0.0), (after, 2.0))
    ]
    assert errors[0] == pytest.approx(errors[1])
    assert 0 < np.abs(errors[0]).max() < 0.3
    order = before[1][HELDOUT_LOSS].argsort()
    for name in UNCERTAINTIES:
        assert (np.diff(before[1][name][order]) > 0).all()
        assert (after[1][name] < before[1][name]).all()


def test_the_look_ahead_gain_is_what_a_batch_of_the_subset_alone_would_gain():
    learner, signals = measured(draws=0.5, transfer=0.2)
    draws = 0.5 * learner.sizes
    for subset in range(4):
        more = draws.copy()
        more[subset] += LOOKAHEAD_DRAWS * learner.shares[subset]
        fall = (learner.shares * (learner.losses(draws) - learner.losses(more))).sum(axis=1)
        assert signals[LOOKAHEAD_GAIN][subset] == pytest.approx(fall[subset])


def test_cosines_fall_where_a_subset_is_learnt_and_rise_with_transfer():
    for name in ("hidden_cosine", "heldout_cosine"):
        assert (measured(draws=4.0)[1][name] < measured()[1][name]).all()
        assert (measured(transfer=0.5)[1][name] >= measured()[1][name]).all()


def test_hbo_at_rate_zero_trains_on_what_its_prior_does():
    still = simulate(HBO(rate=0.0, update_interval=10), steps=60, seed=2)
    prior = simulate(make_policy("prop", update_interval=10), steps=60, seed=2)
    assert (still.draws == prior.draws).all()
    assert (still.losses[1:] == prior.losses).all()  # it also updates before the first step


def test_a_thousand_subsets_take_seconds_at_most():
    start = time.process_time()
    policy = HBO(update_interval=3, update_at_start=False)
    result = simulate(policy, num_subsets=1000, steps=100, batch=64, seed=0)
    assert time.process_time() - start < 5
    assert result.notes["unknown-reward"] > 0
    assert "..." in render_text(result)


def test_the_probe_makes_every_cell_known():
    result = simulate("hbo", num_subsets=50, steps=60, probe_examples=2, seed=0)
    assert result.notes == {}


def test_the_table_says_what_happened():
    result = simulate("prop", num_subsets=3, steps=60, seed=1)
    text = render_text(result)
    lines = text.splitlines()
    assert lines[1].startswith("subset-1")
    assert f"regret {result.regret:.4f}" in text
    assert f"worst subset {result.worst[0]}" in text
    assert max(len(line) for line in lines) <= 100


def test_policies_side_by_side_meet_the_same_toys(standings):
    alone = [simulate("temp", steps=200, seed=seed) for seed in range(2)]
    assert standings["temp"].regret == pytest.approx(np.mean([run.regret for run in alone]))
    assert standings["temp"].passes == pytest.approx(np.mean([run.passes.max() for run in alone]))
    regrets = [one.regret for one in standings.values()]
    assert regrets == sorted(regrets)


def test_the_table_of_policies_has_a_row_for_each():
    lines = render_standings(side_by_side(["uni", "prop"], [0], steps=60)).splitlines()
    assert [line.split()[0] for line in lines] == ["policy", "uni", "prop"]
    assert len({len(line) for line in lines}) == 1


def test_what_needs_settings_of_the_users_is_not_among_the_runnable():
    assert set(POLICIES) - set(runnable()) == {"static", "schedule", "replay"}


def test_an_unknown_field_is_refused_before_any_policy_runs():
    with pytest.raises(ConfigError, match="policy prop: unknown policy field 'rate'"):
        side_by_side(["hbo", "prop"], [0], fields={"rate": 0.1}, steps=1_000_000)


def test_sparklines():
    assert sparkline(np.zeros(3)) == "▁▁▁"
    assert sparkline(np.linspace(0, 1, 100), width=8) == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_subsets", 0), ("steps", 0), ("batch", 0), ("noise", -1.0), ("transfer", 1.5)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is .*; allowed: from"):
        simulate("prop", **{setting: value})
