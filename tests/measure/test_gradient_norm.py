import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import OPTConfig, OPTForCausalLM

from hbo.errors import ConfigError
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.gradient_cosines import gradient_cosines
from hbo.measure.gradient_norm import (
    batch_gradient_norm,
    example_gradient_norms,
    norms_one_by_one,
)
from tests.measure.cases import VOCABULARY, naive_loss, random_examples
from tests.support.tiny import tiny_model

# peft asks Transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


def naive_gradient(model, examples):
    """Flat gradient of the mean loss over all response tokens of ``examples``, by ``backward``."""
    was_training = model.training
    model.eval()
    model.zero_grad()
    tokens = [example.response_tokens for example in examples]
    for example, count in zip(examples, tokens, strict=True):
        (naive_loss(model, example) * count / sum(tokens)).backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    model.train(was_training)
    return flat


@pytest.mark.parametrize("wrap", [lambda model: model, lora], ids=["full", "lora"])
def test_norms_are_those_of_one_backward_per_example(wrap):
    model, examples = wrap(tiny_model()), random_examples(4)
    expected = [naive_gradient(model, [example]).norm().item() for example in examples]
    np.testing.assert_allclose(example_gradient_norms(model, examples), expected, rtol=1e-5)
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_the_norm_of_a_batch_adds_up_over_micro_batches(tokens_per_batch):
    model, examples = tiny_model(), random_examples(6)
    found = batch_gradient_norm(model, examples, tokens_per_batch=tokens_per_batch)
    assert found == pytest.approx(naive_gradient(model, examples).norm().item(), rel=1e-5)
    # Not the mean of the examples' norms (METHOD: Eq. 7 against the released code).
    assert found < 0.95 * example_gradient_norms(model, examples).mean()


def test_cosines_are_those_of_the_batch_gradients():
    model = tiny_model()
    batches = [random_examples(2, seed) for seed in range(3)]
    flat = torch.stack([naive_gradient(model, batch) for batch in batches])
    expected = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1)
    found = gradient_cosines(model, batches)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)


def test_the_model_in_training_is_left_as_it_was():
    model, examples = tiny_model(dropout=0.5).train(), random_examples(3)
    naive_loss(model, examples[0]).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    state = torch.get_rng_state()
    fired = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)

    first = example_gradient_norms(model, examples)
    batch_gradient_norm(model, examples)

    assert model.training and not fired
    assert torch.equal(state, torch.get_rng_state())
    for parameter, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, value)
    # Dropout is off, so that nothing is random in them.
    assert np.array_equal(first, example_gradient_norms(model, examples))


def count_calls(module):
    calls = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_checkpointed_layers_recompute_also_in_eval_mode():
    plain, examples = tiny_model(), random_examples(2)
    model = tiny_model(dropout=0.5)
    model.activation_checkpointing_enable()
    model.train()
    calls = count_calls(model.model.layers[0].mlp)
    np.testing.assert_allclose(
        norms_one_by_one(model, examples), norms_one_by_one(plain, examples), rtol=1e-6
    )
    assert len(calls) == 2 * len(examples)
    assert all(module.training for module in model.modules())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_is_left_out():
    plain, model, examples = tiny_model(), tiny_model(), random_examples(2)
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    model.train()
    np.testing.assert_allclose(
        norms_one_by_one(model, examples), norms_one_by_one(plain, examples), rtol=1e-6
    )


def test_a_layer_that_drops_out_by_itself_is_not_put_in_train_mode():
    def opt(dropout):
        config = OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            dropout=dropout,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return OPTForCausalLM(config)

    model, plain, examples = opt(dropout=0.5), opt(dropout=0.0), random_examples(2)
    model.activation_checkpointing_enable()
    model.train()
    np.testing.assert_allclose(
        norms_one_by_one(model, examples), norms_one_by_one(plain, examples), rtol=1e-6
    )


def test_lora_with_checkpointing():
    plain, model, examples = lora(tiny_model()), tiny_model(), random_examples(2)
    model.activation_checkpointing_enable()
    model = lora(model)
    model.load_state_dict(plain.state_dict())
    model.train()
    np.testing.assert_allclose(
        norms_one_by_one(model, examples), norms_one_by_one(plain, examples), rtol=1e-6
    )


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bf16_is_near_fp32(weights):
    examples = random_examples(3)
    exact = example_gradient_norms(tiny_model(), examples)
    autocast = torch.bfloat16 if weights == torch.float32 else None
    rough = example_gradient_norms(tiny_model().to(weights), examples, dtype=autocast)
    np.testing.assert_allclose(rough, exact, rtol=0.05)
    assert not np.array_equal(rough, exact)


def test_it_also_works_where_gradients_are_off():
    model, examples = tiny_model(), random_examples(1)
    with torch.no_grad():
        found = example_gradient_norms(model, examples)
    assert np.array_equal(found, example_gradient_norms(model, examples))


def test_distributed_data_parallel_is_looked_through(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model, reductions = DistributedDataParallel(tiny_model()), []
        model.register_forward_pre_hook(lambda *_: pytest.fail("the wrapper was run"))
        model.register_comm_hook(
            None, lambda _s, bucket: reductions.append(1) or bucket.get_future()
        )
        found = example_gradient_norms(model, random_examples(2))
    finally:
        distributed.destroy_process_group()
    assert not reductions
    np.testing.assert_allclose(found, example_gradient_norms(tiny_model(), random_examples(2)))


def test_without_a_response_token_there_is_no_norm():
    model, other = tiny_model(), random_examples(2)
    silent = Encoded(np.array([1, 2]), np.array([IGNORED, IGNORED]))
    assert np.isnan(example_gradient_norms(model, [silent, *other])).tolist() == [
        True,
        False,
        False,
    ]
    assert np.isnan(batch_gradient_norm(model, [silent]))
    assert batch_gradient_norm(model, [silent, *other]) == pytest.approx(
        batch_gradient_norm(model, other), rel=1e-5
    )
    cosines = gradient_cosines(model, [other, [silent]])
    assert np.isnan(cosines).tolist() == [[False, True], [True, True]]


def test_a_frozen_model_is_refused():
    model = tiny_model().requires_grad_(False)
    with pytest.raises(ConfigError, match="trainable parameter"):
        example_gradient_norms(model, random_examples(1))


def test_cosines_that_do_not_fit_are_refused_before_any_work():
    model = tiny_model()
    model.forward = None
    with pytest.raises(ConfigError, match=r"2 subsets need .* GiB, the limit is"):
        gradient_cosines(model, [random_examples(1)] * 2, max_bytes=1000)
