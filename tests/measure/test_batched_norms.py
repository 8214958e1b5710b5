"""Gradient norms of a batch from one backward pass against one backward pass per example."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from hbo.errors import ConfigError
from hbo.measure import layer_norms
from hbo.measure.batched_norms import batched_gradient_norms
from hbo.measure.gradient_norm import example_gradient_norms, norms_one_by_one
from hbo.measure.taps import NotApplicable, coverage_of
from tests.measure.cases import random_examples
from tests.measure.families import COVERED, family
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def lora(rank: int = 2, model=None, **settings):
    defaults = {
        "r": rank,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
    }
    config = LoraConfig(**(defaults | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(tiny_model() if model is None else model, config)


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


def batched(model, examples, scope="all", tokens_per_batch=10_000):
    with torch.enable_grad():
        return batched_gradient_norms(
            model, examples, scope=scope, tokens_per_batch=tokens_per_batch, pad_id=0, dtype=None
        )


@pytest.mark.parametrize("scope", ["all", "blocks"])
@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("name", COVERED)
def test_they_are_those_of_one_backward_per_example_in_every_family(name, tied, scope):
    model, examples = family(name, tied), random_examples(5)
    slow = norms_one_by_one(model, examples, scope=scope)
    np.testing.assert_allclose(batched(model, examples, scope), slow, rtol=1e-5)
    assert np.ptp(slow) > 0


@pytest.mark.parametrize("name", COVERED)
def test_in_double_precision_nothing_but_rounding_is_left(name):
    model, examples = family(name, tied=True).double(), random_examples(3)
    slow = norms_one_by_one(model, examples, scope="all")
    np.testing.assert_allclose(batched(model, examples), slow, rtol=1e-6)


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
@pytest.mark.parametrize(
    "make",
    [
        lora,
        lambda: lora(lora_dropout=0.5),
        lambda: lora(modules_to_save=["lm_head", "embed_tokens"]),
        lambda: lora(target_modules=["q_proj", "lm_head"]),
        lambda: lora(model=family("gpt2"), target_modules=["c_attn"], fan_in_fan_out=True),
        lambda: only_linear_trained(bias=False),
        lambda: only_linear_trained(bias=True),
    ],
    ids=["lora", "dropout", "saved", "head", "gpt2", "matrices", "biases"],
)
def test_they_are_those_of_one_backward_per_example(make, tokens_per_batch):
    model, examples = make().train(), random_examples(7)
    fast = batched(model.eval(), examples, tokens_per_batch=tokens_per_batch)
    slow = norms_one_by_one(model, examples, scope="all")
    np.testing.assert_allclose(fast, slow, rtol=1e-5)
    assert np.ptp(slow) > 0


@pytest.mark.parametrize("tied", [False, True])
def test_large_layers_are_taken_a_few_examples_at_a_time(monkeypatch, tied):
    model, examples = family("llama", tied), random_examples(5)
    together = batched(model, examples)
    monkeypatch.setattr(layer_norms, "NUMBERS_AT_A_TIME", 1)
    np.testing.assert_allclose(batched(model, examples), together, rtol=1e-6)


def test_what_a_norm_covers():
    model, examples = lora(modules_to_save=["lm_head"]), random_examples(2)
    adapters, blocks, both = (
        batched(model, examples, scope) for scope in ("adapters", "blocks", "all")
    )
    np.testing.assert_allclose(adapters, blocks, rtol=1e-6)
    assert (both > 1.01 * blocks).all()
    head_only = tiny_model().requires_grad_(False)
    head_only.lm_head.requires_grad_(True)
    with pytest.raises(
        ConfigError, match="over 'blocks' need a trained parameter there; use 'all'"
    ):
        example_gradient_norms(head_only, examples, scope="blocks")
    with pytest.raises(ConfigError, match="covers all, blocks, adapters, not 'half'"):
        example_gradient_norms(head_only, examples, scope="half")


def test_checkpointed_layers_are_measured_when_they_run_again():
    plain, model, examples = tiny_model(), tiny_model(), random_examples(4)
    model.activation_checkpointing_enable()
    np.testing.assert_allclose(
        batched(model.train(), examples), norms_one_by_one(plain, examples, scope="all"), rtol=1e-5
    )


@pytest.mark.parametrize("make", [tiny_model, lora], ids=["full", "lora"])
def test_one_pass_is_enough_and_leaves_no_trace(make):
    model, examples = make().train(), random_examples(3)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    example_gradient_norms(model, examples)
    assert len(calls) == 1
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    hooks = [hook for module in model.modules() for hook in module._forward_hooks]
    assert len(hooks) == 1
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("make", [lora, lambda: family("gemma3", tied=True)], ids=["lora", "full"])
def test_bf16_is_near(make):
    model, examples = make(), random_examples(4)
    fast = example_gradient_norms(model, examples, dtype=torch.bfloat16)
    np.testing.assert_allclose(fast, norms_one_by_one(model, examples), rtol=0.05)


def test_a_mixture_of_experts_goes_the_slow_way_and_its_adapters_the_fast_way():
    model, examples = family("mixtral"), random_examples(2)
    with pytest.raises(NotApplicable, match=r"no rule for .*mlp\.gate\.weight, a part"):
        coverage_of(model, "blocks")
    slow = norms_one_by_one(model, examples)
    np.testing.assert_array_equal(example_gradient_norms(model, examples), slow)
    model = lora(model=model, target_modules=["q_proj", "v_proj"])
    np.testing.assert_allclose(
        batched(model, examples), norms_one_by_one(model, examples, scope="all"), rtol=1e-5
    )


def test_a_layer_that_runs_twice_takes_the_slow_way():
    model, examples = tiny_model(), random_examples(2)
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(NotApplicable, match="runs more than once"):
        batched(model, examples)
    assert np.isfinite(example_gradient_norms(model, examples)).all()


def test_a_layer_that_only_looks_like_a_norm_takes_the_slow_way():
    class Bent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((32,), 1.5))

        def forward(self, states):
            return states * self.weight**2

    model, examples = tiny_model(), random_examples(2)
    model.model.norm = Bent()
    with pytest.raises(NotApplicable, match="not linear in its parameters"):
        batched(model, examples)
    slow = norms_one_by_one(model, examples)
    np.testing.assert_array_equal(example_gradient_norms(model, examples), slow)


def test_matrices_that_are_shared_inside_the_blocks_take_the_slow_way():
    model, examples = tiny_model(), random_examples(2)
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    with pytest.raises(NotApplicable, match="shared by Linear and Linear"):
        batched(model, examples)
    assert np.isfinite(example_gradient_norms(model, examples)).all()


def test_a_layer_that_takes_no_part_is_noticed():
    model, examples = tiny_model(), random_examples(2)
    model.spare = torch.nn.Linear(2, 2)
    with pytest.raises(NotApplicable, match=r"\(Linear\) did not run"):
        batched(model, examples)
    slow = norms_one_by_one(model, examples)
    np.testing.assert_array_equal(example_gradient_norms(model, examples), slow)
