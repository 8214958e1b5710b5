"""The fast gradient norms against one backward pass per example."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hbo.measure.gradient_norm import example_gradient_norms, norms_one_by_one
from hbo.measure.linear_norms import NotApplicable, linear_gradient_norms, trained_linear_layers
from tests.measure.cases import random_examples
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def lora(rank: int = 2, **settings):
    config = LoraConfig(
        r=rank,
        target_modules=["q_proj", "v_proj", "down_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        **settings,
    )
    return get_peft_model(tiny_model(), config)


def only_linear_trained(bias: bool):
    """Full-size matrices, where the Gram way is the cheaper one; with a bias on request."""
    model = tiny_model()
    model.requires_grad_(False)
    for layer in model.model.layers:
        if bias:
            layer.mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(64))
        layer.mlp.up_proj.requires_grad_(True)
        layer.self_attn.o_proj.requires_grad_(True)
    return model


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
@pytest.mark.parametrize(
    "make",
    [
        lora,
        lambda: lora(lora_dropout=0.5),
        lambda: only_linear_trained(bias=False),
        lambda: only_linear_trained(bias=True),
    ],
    ids=["lora", "lora-dropout", "matrices", "biases"],
)
def test_they_are_those_of_one_backward_per_example(make, tokens_per_batch):
    model, examples = make().train(), random_examples(7)
    with torch.enable_grad():
        fast = linear_gradient_norms(
            model.eval(), examples, tokens_per_batch=tokens_per_batch, pad_id=0, dtype=None
        )
    slow = norms_one_by_one(model, examples)
    np.testing.assert_allclose(fast, slow, rtol=1e-5)
    assert np.ptp(slow) > 0


def test_lora_goes_the_fast_way_and_leaves_no_trace():
    model, examples = lora().train(), random_examples(3)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    example_gradient_norms(model, examples)
    assert len(calls) == 1
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    hooks = [hook for module in model.modules() for hook in module._forward_hooks]
    assert len(hooks) == 1


def test_bf16_is_near():
    model, examples = lora(), random_examples(4)
    fast = example_gradient_norms(model, examples, dtype=torch.bfloat16)
    np.testing.assert_allclose(fast, norms_one_by_one(model, examples), rtol=0.05)


@pytest.mark.parametrize(
    "also", ["model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
)
def test_other_trained_parameters_take_the_slow_way(also):
    model = tiny_model()
    model.requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.requires_grad_(True)
    trained_linear_layers(model)
    model.get_parameter(also).requires_grad_(True)
    with pytest.raises(NotApplicable):
        trained_linear_layers(model)
    examples = random_examples(2)
    np.testing.assert_array_equal(
        example_gradient_norms(model, examples), norms_one_by_one(model, examples)
    )


def test_a_layer_that_runs_twice_takes_the_slow_way():
    model = lora()
    layers = model.base_model.model.model.layers
    layers[1] = layers[0]
    examples = random_examples(2)
    with pytest.raises(NotApplicable), torch.enable_grad():
        linear_gradient_norms(model, examples, tokens_per_batch=99, pad_id=0, dtype=None)
    assert np.isfinite(example_gradient_norms(model, examples)).all()
