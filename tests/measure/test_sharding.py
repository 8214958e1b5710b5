"""Kinds of sharding by their marks; real processes are in tests/integrations/test_sharded.py."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hbo
from hbo.errors import ConfigError
from hbo.measure.forward import bare_model
from hbo.measure.probe import PROBED_SIGNALS, Probe
from hbo.measure.sharding import (
    GRADIENT_SIGNALS,
    Sharding,
    check_probe,
    probed_together,
    sharding_of,
    total_norm,
)
from hbo.mixture import Mixture
from hbo.signals import (
    GRADIENT_NORM,
    HIDDEN_COSINE,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    UNCERTAINTIES,
)
from tests.measure.cases import random_examples, random_heldout
from tests.support.tiny import tiny_model

MIXTURE = Mixture(("large", "small"), np.array([[4, 4], [3, 2]]))
EXAMPLES = random_examples(MIXTURE.num_examples)


class DeepSpeedEngine(nn.Module):
    """DeepSpeed is not installed: what matters of its engine is the name and the module inside."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *_args, **_kwargs):
        pytest.fail("the engine was run")


def zero3(model):
    """The mark that DeepSpeed ZeRO-3 leaves on parameters."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
    return model


def fsdp1_inside(model):
    """The mark that FSDP1 leaves on parameters."""
    for parameter in model.parameters():
        parameter._fsdp_flattened = True
    return model


def probe():
    return Probe(
        MIXTURE,
        lambda ids: [EXAMPLES[i] for i in ids],
        lambda ids: 0.01 * ids,
        heldout=random_heldout(2),
        learning_rate=lambda: 0.1,
    )


def test_whole_models_are_told_from_sharded_ones():
    assert sharding_of(tiny_model()) is Sharding.NONE
    assert sharding_of(zero3(tiny_model())) is Sharding.ZERO3
    assert sharding_of(fsdp1_inside(tiny_model())) is Sharding.FSDP1
    assert not probed_together(DeepSpeedEngine(tiny_model()))  # ZeRO-1 and 2
    assert probed_together(DeepSpeedEngine(zero3(tiny_model())))


def test_a_model_in_one_piece_may_be_probed_for_everything():
    check_probe(tiny_model(), PROBED_SIGNALS)
    check_probe(DeepSpeedEngine(tiny_model()), PROBED_SIGNALS)


@pytest.mark.parametrize("signal", sorted(GRADIENT_SIGNALS))
def test_gradients_of_zero3_are_refused_with_ways_out(signal):
    model = DeepSpeedEngine(zero3(tiny_model()))
    with pytest.raises(ConfigError, match=f"{signal} cannot be probed under DeepSpeed ZeRO-3; use"):
        check_probe(model, {LOSS, signal})
    with pytest.raises(ConfigError, match="or train with FSDP2, ZeRO-2 or"):
        probe().measure(model, {signal}, 0)
    check_probe(model, {LOSS, PERPLEXITY, PERPLEXITY_RATIO, HIDDEN_COSINE} | UNCERTAINTIES)


def test_the_module_inside_fsdp1_is_refused_for_losses_too_and_nothing_wanted_is_no_error():
    with pytest.raises(ConfigError, match="pass the wrapper"):
        check_probe(fsdp1_inside(tiny_model()), {LOSS})
    check_probe(fsdp1_inside(tiny_model()), set())
    check_probe(zero3(tiny_model()), set())


def test_ranks_that_share_a_model_measure_the_same_and_one_hands_it_in():
    alone = probe().measure(tiny_model(), {LOSS}, 0)
    model = zero3(tiny_model())
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    first = probe().measure(model, {LOSS}, 0, rank=0, world_size=2)
    passes = len(calls)
    second = probe().measure(model, {LOSS}, 0, rank=1, world_size=2)
    assert len(calls) == 2 * passes > 0
    for one, other in zip(first.examples[LOSS], alone.examples[LOSS], strict=True):
        np.testing.assert_array_equal(one, other)
    assert [len(column) for column in second.examples[LOSS]] == [0, 0]
    assert second.forward_examples == first.forward_examples


def test_deepspeeds_engine_is_looked_through():
    model = tiny_model()
    assert bare_model(DeepSpeedEngine(model)) is model
    found = probe().measure(DeepSpeedEngine(model), {LOSS, GRADIENT_NORM}, 0)
    expected = probe().measure(model, {LOSS, GRADIENT_NORM}, 0)
    for name in (LOSS, GRADIENT_NORM):
        np.testing.assert_array_equal(found.examples[name][1], expected.examples[name][1])


def test_the_norm_of_parts_is_that_of_the_whole():
    parts = [torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    assert total_norm(parts) == pytest.approx(torch.stack(parts).norm().item(), rel=1e-6)
    assert total_norm([*parts, parts[0]]) > total_norm(parts)  # the same tensor twice counts twice
    assert total_norm([]) == 0


@pytest.mark.parametrize("shape", [(4096, 1024), (2**22,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_millions_of_numbers_is_not_rounded_down(shape, dtype):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert total_norm([numbers]) == pytest.approx(numbers.double().norm().item(), rel=1e-7)


def test_no_probe_goes_through_a_trainers_backward():
    """DeepSpeed's ``accelerator.backward`` steps the optimiser too; ours is a loss's own."""
    found = []
    for path in sorted(Path(hbo.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "backward":
                found.append((path.name, ast.unparse(node)))
    assert found == [("gradient_norm.py", "loss.backward")]
