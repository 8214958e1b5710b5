"""The arithmetic of a plan."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.config import load_config
from hbo.errors import ConfigError
from hbo.measure.probe import Probe
from hbo.measure.whole import WHOLE
from hbo.mixture import Mixture
from hbo.run.budget import Budget, expected_draws, make_budget, signal_cost
from hbo.signals import HELDOUT_LOSS, HELDOUT_SIGNALS, HELDOUT_VARIANCE, LOSS, UNSEEN_LOSS
from tests.measure.cases import random_examples, random_heldout
from tests.support.tiny import tiny_model
from tests.support.workspace import CONFIG, write_config


def training(**changes):
    values = {
        "train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": -1,
        "num_train_epochs": 3.0,
        "accelerator_config": SimpleNamespace(split_batches=False),
    }
    return SimpleNamespace(**values | changes)


@pytest.mark.parametrize(
    ("changes", "examples", "ranks", "steps", "per_step"),
    [
        ({"max_steps": 10}, 100, 1, 10, 8),
        ({"max_steps": 10}, 100, 3, 10, 24),
        ({}, 100, 1, 39, 8),
        ({"num_train_epochs": 0.5}, 16, 1, 1, 8),
        ({"accelerator_config": SimpleNamespace(split_batches=True)}, 16, 4, 6, 8),
    ],
)
def test_steps_and_draws(changes, examples, ranks, steps, per_step):
    budget = make_budget(training(**changes), examples, ranks)
    assert (budget.steps, budget.draws_per_step, budget.draws) == (
        steps,
        per_step,
        steps * per_step,
    )


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 200), st.data())
def test_expected_draws_keep_the_caps_and_use_the_budget(weights, draws, data):
    caps = np.array([data.draw(st.integers(-1, 60)) for _ in weights])
    law = np.array(weights, dtype=float)[:, None] * [0.25, 0.75] / sum(weights)
    found = expected_draws(law, draws, caps).sum(axis=1)
    limits = np.where(caps < 0, np.inf, caps)
    assert (found <= limits + 1e-9).all()
    assert found.sum() == pytest.approx(min(draws, limits.sum()))
    free = found < limits - 1e-9
    if free.any():
        per_weight = found[free] / law.sum(axis=1)[free]
        assert per_weight == pytest.approx(per_weight[0])


MIXTURE = Mixture(("german", "arabic"), np.array([[6, 5], [2, 1]]))
EXAMPLES, HELDOUT = random_examples(14), random_heldout(2)


def cost(folder: Path, needs: set[str], heldout=HELDOUT, start: bool = False, **balance):
    loaded = load_config(write_config(folder, balance={**CONFIG["balance"], **balance}))
    policy = SimpleNamespace(needs=frozenset(needs), interval=2, update_at_start=start)
    law = MIXTURE.sizes / MIXTURE.sizes.sum()
    return signal_cost(loaded, MIXTURE, Budget(6, 4), policy, law, False, 14, heldout)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_signal_costs_what_a_probe_of_it_runs(tmp_path, name):
    options = {"probe_examples": 3, "heldout_examples": 4, "dropout_passes": 2}
    found = cost(tmp_path, {name}, **options)
    probe = Probe(
        MIXTURE,
        lambda ids: [EXAMPLES[index] for index in ids],
        examples_per_cell=2,
        examples_per_subset=3,
        heldout=HELDOUT,
        heldout_examples=4,
        dropout_passes=2,
        learning_rate=lambda: 0.1,
    )
    run = probe.measure(tiny_model(dropout=0.1), {name}, 0)
    assert found["probed"] == [name] and found["updates"] == 3
    assert found["forward_passes"] == 3 * run.forward_examples
    assert found["backward_passes"] == 3 * run.backward_examples
    work = 3 * (run.forward_examples + 3 * run.backward_examples)
    assert found["share"] == pytest.approx(work / (3 * 24)) and work > 0


def test_signals_of_the_same_passes_cost_them_once(tmp_path):
    one = cost(tmp_path, {HELDOUT_LOSS, "heldout_entropy"})
    more = cost(tmp_path, {HELDOUT_LOSS, "heldout_entropy", "heldout_end_entropy"})
    assert one["forward_passes"] == more["forward_passes"] == 3 * 2 * (5 + 4)
    both = cost(tmp_path, {HELDOUT_LOSS, LOSS}, signals="probe")
    assert both["forward_passes"] == 3 * ((1 + 1 + 1 + 1) + (5 + 4))


def test_an_update_before_the_first_step_is_probed_whatever_training_shows_later(tmp_path):
    late, early = (cost(tmp_path, {HELDOUT_LOSS, LOSS}, start=start) for start in (False, True))
    cells = 4  # of one example each
    assert early["forward_passes"] - late["forward_passes"] == cells + 5 + 4
    assert early["updates"] == late["updates"] == 3


def test_a_plan_refuses_what_no_probe_of_the_run_could_measure(tmp_path):
    place = r"config.yaml:\d+: "
    for name in HELDOUT_SIGNALS - {UNSEEN_LOSS}:
        with pytest.raises(ConfigError, match=f"{place}.* and subset 'arabic' has none"):
            cost(tmp_path, {name}, [HELDOUT[0], []], dropout_passes=2)
    with pytest.raises(ConfigError, match=rf"{place}.*balance\.dropout_passes to 2 or more"):
        cost(tmp_path, {HELDOUT_VARIANCE})
    assert cost(tmp_path, {LOSS}, [])["observed"] == [LOSS]
    some = cost(tmp_path, {UNSEEN_LOSS}, [HELDOUT[0], []])
    assert 0 < some["forward_passes"] < cost(tmp_path, {UNSEEN_LOSS})["forward_passes"]
