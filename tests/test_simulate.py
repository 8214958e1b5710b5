"""The toy learner, its best mixture, and policies on it."""

import time

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import HBO, POLICIES, make_policy
from hbo.simulate import ToyLearner, render_text, simulate, sparkline
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


@pytest.mark.parametrize("transfer", [0.0, 0.4])
def test_no_other_mixture_beats_the_best_one(transfer):
    learner, total = toy(transfer=transfer), 2000
    best = learner.best(total)
    assert best.sum() == pytest.approx(1.0)
    lowest = learner.macro(learner.losses(best * total))
    generator = np.random.default_rng(1)
    for size in (0.05, 0.5):
        for _ in range(200):
            other = best * generator.lognormal(0.0, size, best.shape) + 1e-4 * generator.random()
            other /= other.sum()
            assert learner.macro(learner.losses(other * total)) > lowest - 1e-9


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


def test_hbo_beats_its_prior_where_small_subsets_have_much_to_learn():
    regret = {
        name: np.mean([simulate(name, steps=200, seed=seed).regret for seed in range(2)])
        for name in ("prop", "hbo")
    }
    assert regret["hbo"] < 0.6 * regret["prop"]


def test_hbo_at_rate_zero_trains_on_what_its_prior_does():
    still = simulate(HBO(rate=0.0, update_interval=10), steps=60, seed=2)
    prior = simulate(make_policy("prop", update_interval=10), steps=60, seed=2)
    assert (still.draws == prior.draws).all()
    assert (still.losses == prior.losses).all()


def test_a_thousand_subsets_take_seconds_at_most():
    start = time.process_time()
    result = simulate("hbo", num_subsets=1000, steps=100, batch=64, seed=0)
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
