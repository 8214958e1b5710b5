"""The arithmetic of a plan."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.run.budget import expected_draws, make_budget


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
