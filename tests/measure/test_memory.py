"""Memory runs out in a probe: it shrinks its batches, says so, and gives the same values."""

import re

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hbo.errors import EnvironmentProblem
from hbo.measure.batches import TokenBudget
from hbo.measure.gradient_norm import batch_gradient_norm, example_gradient_norms
from hbo.measure.probe import PROBED_SIGNALS, Probe
from hbo.measure.uncertainty import SPREADS
from hbo.mixture import Mixture
from hbo.signals import GRADIENT_NORM
from tests.measure.cases import (
    CPU_FULL,
    CUDA_FULL,
    out_of_memory_above,
    random_examples,
    random_heldout,
)
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

ONE_PASS = PROBED_SIGNALS - SPREADS
MIXTURE = Mixture(("large", "small"), np.array([[6, 6], [3, 2]]))
EXAMPLES = random_examples(MIXTURE.num_examples)


def probe(lines):
    return Probe(
        MIXTURE,
        lambda ids: [EXAMPLES[index] for index in ids],
        lambda ids: 0.01 * ids,
        heldout=random_heldout(2),
        learning_rate=lambda: 0.1,
        tokens_per_batch=400,
        notice=lines.append,
    )


def lora():
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(tiny_model(), config)


def assert_same(found, expected):
    for name, (ids, values) in expected.examples.items():
        assert np.array_equal(found.examples[name][0], ids)
        np.testing.assert_allclose(found.examples[name][1], values, rtol=1e-4)
    for name, values in expected.whole.items():
        np.testing.assert_allclose(found.whole[name], values, rtol=1e-3)


@pytest.mark.parametrize("error", [CUDA_FULL, CPU_FULL], ids=["cuda", "cpu"])
@pytest.mark.parametrize(
    ("make", "backward"),
    [(tiny_model, False), (tiny_model, True), (lora, False)],
    ids=["forward", "backward", "lora"],
)
def test_a_probe_shrinks_says_so_and_remembers(make, backward, error):
    expected = probe([]).measure(make(), ONE_PASS, 0)
    model, lines = make(), []
    model.train()
    sizes = out_of_memory_above(model, 100, error, backward=backward)
    prober = probe(lines)
    assert_same(prober.measure(model, ONE_PASS, 0), expected)
    assert 1 <= len(lines) <= 3
    line = r"out of memory in a probe of (\d+) tokens; batches of (\d+) from now on"
    size, half = (int(number) for number in re.fullmatch(line, lines[0]).groups())
    assert size in sizes and size > 100 and half == size // 2
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    sizes.clear()
    assert_same(prober.measure(model, ONE_PASS, 0), expected)
    assert max(sizes) <= 100 and len(lines) <= 3


def test_norms_of_linear_layers_halve_before_they_go_one_by_one():
    model = lora()
    sizes = out_of_memory_above(model, 100)
    example_gradient_norms(model, EXAMPLES, tokens_per_batch=400)
    assert len(sizes) < len(EXAMPLES) and sum(size > 100 for size in sizes) <= 3


def test_a_layer_that_recomputes_may_hold_what_the_fast_way_does_not():
    model, lines = lora(), []
    calls = []
    # The fast way records what linear layers saw: its hooks are there, and memory is not.
    layer = model.get_decoder().layers[0].self_attn.q_proj.lora_A["default"]

    def refuse(_module, _args):
        calls.append(len(layer._forward_hooks))
        if calls[-1]:
            raise CUDA_FULL

    model.get_decoder().layers[1].register_forward_pre_hook(refuse)
    found = probe(lines).measure(model, {GRADIENT_NORM}, 0)
    assert_same(found, probe([]).measure(lora(), {GRADIENT_NORM}, 0))
    assert lines[-1] == "out of memory in a probe of one example; gradients are recomputed, slower"


@pytest.mark.parametrize("measure", [example_gradient_norms, batch_gradient_norm])
def test_an_example_that_no_memory_holds_is_one_clear_line(measure):
    model = tiny_model()
    out_of_memory_above(model, 3)
    with pytest.raises(EnvironmentProblem, match=r"out of memory on one example of \d+ tokens"):
        measure(model, EXAMPLES)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_errors_are_not_taken_for_memory():
    model = tiny_model()
    out_of_memory_above(model, 3, RuntimeError("no kernel image"))
    with pytest.raises(RuntimeError, match="no kernel image"):
        batch_gradient_norm(model, EXAMPLES)


def test_a_batch_that_ranks_share_is_not_shrunk():
    def work(_examples):
        raise CUDA_FULL

    budget = TokenBudget(400)
    with pytest.raises(EnvironmentProblem, match="cannot shrink it alone"):
        list(budget.run(EXAMPLES, work, together=True))
    assert budget.tokens == 400
