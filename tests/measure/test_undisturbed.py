import random

import numpy as np
import pytest
import torch
from torch import nn

from hbo.measure.undisturbed import undisturbed


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model.train()
    model[1].eval()  # a frozen part inside a model in training
    model(torch.ones(2, 3)).sum().backward()
    return model


def draw_from_every_generator():
    return random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002


def expected_next_draws():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    draws = draw_from_every_generator()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    return draws


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_random_state_and_modes_come_back(model, fails):
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    modes = [module.training for module in model.modules()]
    buffers = [buffer.clone() for buffer in model.buffers()]
    expected = expected_next_draws()

    def disturb():
        with undisturbed(model, train_mode=True):
            assert all(module.training for module in model.modules())
            assert all(parameter.grad is None for parameter in model.parameters())
            model(torch.rand(2, 3)).sum().backward()
            draw_from_every_generator()
            if fails:
                raise RuntimeError("half way")

    if fails:
        with pytest.raises(RuntimeError, match="half way"):
            disturb()
    else:
        disturb()

    for parameter, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
    assert [module.training for module in model.modules()] == modes
    assert all(map(torch.equal, model.buffers(), buffers))
    assert draw_from_every_generator() == expected


def test_dropout_is_off_inside(model):
    with undisturbed(model) as inside:
        assert not any(module.training for module in inside.modules())


def test_a_weight_cast_inside_does_not_leak_into_the_step_around():
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with undisturbed(layer), torch.no_grad():
            assert not torch.is_autocast_cache_enabled()
            layer(torch.ones(1, 4))
        assert torch.is_autocast_cache_enabled()
        layer(torch.ones(1, 4)).float().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
