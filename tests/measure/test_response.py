import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from hbo.errors import EnvironmentProblem
from hbo.measure import forward
from hbo.measure.batches import collate
from hbo.measure.examples import Encoded
from hbo.measure.forward import token_losses
from hbo.measure.response import response_losses, response_statistics
from tests.measure.cases import (
    VOCABULARY,
    naive_loss,
    naive_losses,
    out_of_memory_above,
    random_example,
    random_examples,
    two_turns,
)
from tests.support.tiny import tiny_model

# peft asks Transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return get_peft_model(model, config)


def patched_by_trl(model):
    add_fused_lm_head(model)
    return model


def without_a_head(model):
    model.get_output_embeddings = lambda: None
    return model


def models():
    yield "llama", tiny_model
    yield "lora", lambda: lora(tiny_model())
    yield "trl", lambda: patched_by_trl(tiny_model())
    yield "trl-lora", lambda: lora(patched_by_trl(tiny_model()))
    yield "all-logits", lambda: without_a_head(tiny_model())
    yield (
        "soft-capped",
        lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)),
    )
    yield "scaled", lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3))
    yield "divided", lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0))
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        initializer_range=0.3,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield "gpt2", lambda: GPT2LMHeadModel(gpt2)


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in models()])
def test_batched_losses_are_those_of_full_logits_one_by_one(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    examples = [*random_examples(9), two_turns()]
    found = response_statistics(model, examples, alone=True, tokens_per_batch=90)
    expected = naive_losses(model, examples)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found.loss, expected, atol=1e-5)
    alone = naive_losses(model, [example.alone for example in examples[:-1]])
    np.testing.assert_allclose(found.alone_loss[:-1], alone, atol=1e-5)
    assert np.isnan(found.alone_loss[-1])
    assert found.response_tokens.tolist() == [e.response_tokens for e in examples]


def test_the_head_sees_response_tokens_only():
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))
    examples = random_examples(5)
    response_losses(model, examples)
    assert sum(seen) == sum(example.response_tokens for example in examples)


def test_virtual_tokens_of_prompt_tuning_are_stepped_over():
    model = get_peft_model(
        tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    example = random_examples(1)[0]
    losses = response_losses(model, [example])
    batch = collate([example], 0)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 3:]
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], batch.labels[0, 1:])
    np.testing.assert_allclose(losses, [expected.item()], atol=1e-5)


def test_chunks_of_logits_change_nothing(monkeypatch):
    model, examples = tiny_model(), random_examples(6)
    whole = response_losses(model, examples)
    monkeypatch.setattr(forward, "LOGITS_PER_CHUNK", 2 * VOCABULARY)
    np.testing.assert_allclose(response_losses(model, examples), whole, rtol=1e-6)


def test_order_does_not_depend_on_the_budget_and_progress_reaches_the_end():
    model, examples, calls = tiny_model(), random_examples(12), []
    small = response_statistics(
        model, examples, alone=True, tokens_per_batch=1, progress=lambda *call: calls.append(call)
    )
    large = response_statistics(model, examples, alone=True, tokens_per_batch=10_000)
    np.testing.assert_allclose(small.loss, large.loss, atol=1e-5)
    assert calls[-1] == (24, 24)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_scoring_leaves_mode_and_random_state_alone():
    model = tiny_model(dropout=0.5).train()
    state = torch.get_rng_state()
    first = response_losses(model, random_examples(3))
    assert model.training and model.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(first, response_losses(model, random_examples(3)))


def test_autocast_agrees_with_fp32_to_the_precision_of_bf16():
    model, examples = tiny_model(), random_examples(6)
    exact = response_losses(model, examples)
    rough = response_losses(model, examples, dtype=torch.bfloat16)
    assert 0 < np.abs(rough - exact).max() < 0.05


def test_a_bf16_model_is_measured_in_its_own_precision():
    model, examples = tiny_model(), random_examples(6)
    exact = response_losses(model, examples)
    rough = response_losses(model.bfloat16(), examples)
    assert 0 < np.abs(rough - exact).max() < 0.1


def test_nan_stays_with_its_example():
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    generator = np.random.default_rng(0)
    examples = [random_example(generator, 5, 3) for _ in range(6)]
    for example in examples:
        example.input_ids[example.input_ids == 7] = 8
        np.copyto(example.labels, np.where(example.labels == 7, 8, example.labels))
    examples[2].input_ids[1] = 7
    losses = response_losses(model, examples)
    assert np.isnan(losses).tolist() == [False, False, True, False, False, False]


def test_an_example_without_a_response_token_is_nan_and_costs_nothing():
    model = tiny_model()
    silent = Encoded(np.array([1, 2, 3]), np.array([1, -100, -100]))
    empty = Encoded(np.empty(0, np.int32), np.empty(0, np.int32))
    other = random_examples(1)[0]
    losses = response_losses(model, [silent, other, empty])
    assert np.isnan(losses).tolist() == [True, False, True]
    assert losses[1] == pytest.approx(naive_losses(model, [other])[0], abs=1e-5)
    assert response_losses(model, []).shape == (0,)


def test_out_of_memory_halves_the_batch_and_goes_on():
    model, examples = tiny_model(), random_examples(20)
    expected = response_losses(model, examples)
    sizes = out_of_memory_above(model, tokens=100)
    np.testing.assert_allclose(
        response_losses(model, examples, tokens_per_batch=400), expected, atol=1e-5
    )
    assert 1 <= sum(size > 100 for size in sizes) <= 2


def test_an_example_that_no_memory_holds_is_one_clear_line():
    model = tiny_model()
    out_of_memory_above(model, tokens=3)
    with pytest.raises(EnvironmentProblem, match=r"out of memory on one example of \d+ tokens"):
        response_losses(model, random_examples(4))


def test_other_errors_are_not_taken_for_memory():
    model = tiny_model()
    too_large = Encoded(np.array([1, 5000]), np.array([-100, 5000]))
    with pytest.raises(IndexError):
        response_losses(model, [too_large])


def test_token_losses_have_the_gradient_of_the_plain_loss():
    model, example = tiny_model(), random_examples(1)[0]
    token_losses(model, collate([example], 0)).mean().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    naive_loss(model, example).backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)
