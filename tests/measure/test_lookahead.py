import copy
from types import MethodType

import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from peft import LoraConfig, get_peft_model

from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.lookahead import lookahead_gain, token_mean_loss
from tests.measure.cases import CUDA_FULL, naive_loss, out_of_memory_above, random_examples
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

BATCH = random_examples(5)


def lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


def tied(model):
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def naive_batch_loss(model):
    tokens = [example.response_tokens for example in BATCH]
    losses = [naive_loss(model, example) for example in BATCH]
    return sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)


def naive_gain(model, rate):
    """A copy of the model, an optimiser, a step."""
    model = copy.deepcopy(model).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    before = naive_batch_loss(model)
    before.backward()
    torch.optim.SGD(trained, lr=rate).step()
    return (before - naive_batch_loss(model)).item()


@pytest.mark.parametrize("wrap", [lambda model: model, lora, tied])
@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_gains_are_those_of_a_step_on_a_copy(wrap, rate):
    torch.manual_seed(0)
    model = wrap(tiny_model(dropout=0.2)).train()
    expected = naive_gain(model, rate)
    found = lookahead_gain(model, BATCH, rate, tokens_per_batch=60)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert abs(expected) > 1e-5


def test_a_small_step_gains_its_size_times_the_squared_gradient():
    model = tiny_model().double()
    naive_batch_loss(model).backward()
    square = sum(parameter.grad.square().sum().item() for parameter in model.parameters())
    model.zero_grad()
    assert lookahead_gain(model.float(), BATCH, 1e-3) == pytest.approx(1e-3 * square, rel=0.02)


def test_a_step_of_nothing_gains_nothing_and_a_batch_without_response_is_unknown():
    silent = Encoded(BATCH[0].input_ids, np.full_like(BATCH[0].labels, IGNORED))
    assert lookahead_gain(tiny_model(), BATCH, 0.0) == 0
    assert np.isnan(lookahead_gain(tiny_model(), [silent], 0.1))
    assert np.isnan(token_mean_loss(tiny_model(), [silent]))
    mean = naive_batch_loss(tiny_model()).item()
    assert token_mean_loss(tiny_model(), [silent, *BATCH]) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_very_weights_come_back_come_what_may(dtype):
    model = tiny_model().to(dtype)
    parameters = list(model.parameters())
    kept = [(p.data_ptr(), p.detach().clone()) for p in parameters]

    def assert_back():
        for parameter, (place, value) in zip(parameters, kept, strict=True):
            assert parameter.data_ptr() == place and torch.equal(parameter, value)
            assert parameter.dtype == dtype and parameter.grad is None

    lookahead_gain(model, BATCH, 0.5)
    assert_back()
    calls = []

    def fail(*_args):
        calls.append(not torch.equal(parameters[0], kept[0][1]))
        if calls[-1]:
            raise RuntimeError("in the midst of the step")

    handle = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the midst"):
        lookahead_gain(model, BATCH, 0.5)
    handle.remove()
    assert calls == [False, False, True]
    assert_back()


def test_memory_that_runs_out_in_a_step_makes_smaller_batches():
    model = tiny_model()
    expected = lookahead_gain(model, BATCH, 0.1)
    sizes = out_of_memory_above(model, 60, CUDA_FULL, backward=True)
    assert lookahead_gain(model, BATCH, 0.1) == pytest.approx(expected, rel=1e-3)
    assert max(sizes) > 60 and min(sizes) <= 60


def test_a_small_step_is_measured_in_fp32_under_the_autocast_of_a_training():
    model = tiny_model()
    expected = lookahead_gain(model, BATCH, 1e-5)
    assert expected == pytest.approx(lookahead_gain(model.double(), BATCH, 1e-5), rel=0.02)
    model.float()
    wrapper = torch.autocast("cpu", torch.bfloat16)
    model._original_forward = model.forward  # as Accelerate does it
    model.forward = MethodType(convert_outputs_to_fp32(wrapper(model.forward.__func__)), model)
    wrapped = model.forward
    assert lookahead_gain(model, BATCH, 1e-5, dtype=torch.bfloat16) == expected
    with wrapper:
        assert lookahead_gain(model, BATCH, 1e-5) == expected
    assert model.forward is wrapped
    assert token_mean_loss(model, BATCH) != token_mean_loss(tiny_model(), BATCH)
    model.lm_head.to(torch.bfloat16)  # what is not all in fp32 may need the autocast
    assert np.isfinite(lookahead_gain(model, BATCH, 1e-5, dtype=torch.bfloat16))
