import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel
from trl.trainer.utils import add_fused_lm_head

from hbo.errors import ConfigError
from hbo.measure.hidden_states import mean_cosines, mean_hidden_states
from tests.measure.cases import out_of_memory_above, random_examples
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

EXAMPLES = random_examples(9)


def naive_states(model, examples):
    """Each example alone, by the model's own list of hidden states, with all its tokens."""
    model.eval()
    found = []
    with torch.no_grad():
        for example in examples:
            ids = torch.as_tensor(example.input_ids.astype(np.int64))[None]
            states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            found.append(states[0, -ids.shape[1] :].mean(dim=0).double().numpy())
    return np.array(found)


def lora(model):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return get_peft_model(model, config)


def patched(model):
    add_fused_lm_head(model)
    return model


def gpt2(_model):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, **sizes))


def soft_prompt(model):
    return get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


@pytest.mark.parametrize("wrap", [lambda model: model, lora, patched, gpt2, soft_prompt])
def test_states_are_those_that_the_model_gives_for_each_example_alone(wrap):
    torch.manual_seed(0)
    model = wrap(tiny_model())
    found = mean_hidden_states(model, EXAMPLES, tokens_per_batch=60)
    np.testing.assert_allclose(found, naive_states(model, EXAMPLES), atol=1e-5)
    assert np.ptp(found[:, 0]) > 0


def test_the_head_sees_no_token_and_nothing_stays_on_the_model():
    model, rows = tiny_model(), []
    handle = model.lm_head.register_forward_hook(lambda _m, args, _o: rows.append(args[0].shape[1]))
    mean_hidden_states(model, EXAMPLES)
    handle.remove()
    assert set(rows) == {0}
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_batches_shrink_where_memory_runs_out():
    model = tiny_model()
    expected = mean_hidden_states(model, EXAMPLES)
    sizes = out_of_memory_above(model, 60)
    np.testing.assert_allclose(mean_hidden_states(model, EXAMPLES), expected, atol=1e-5)
    assert max(sizes) > 60 and min(sizes) <= 60


def test_a_model_that_names_no_decoder_is_refused():
    model = tiny_model()
    model.get_decoder = lambda: model
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not say which of its modules"):
        mean_hidden_states(model, EXAMPLES)


def test_cosines_are_those_of_every_two_sets():
    generator = np.random.default_rng(0)
    vectors, sets = generator.normal(size=(12, 5)), generator.integers(0, 4, 12)
    means = [vectors[sets == one].mean(axis=0) for one in range(4)]
    expected = [
        np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in means]) for a in means
    ]
    np.testing.assert_allclose(mean_cosines(vectors, sets, 4), expected, rtol=1e-12)


def test_a_set_without_examples_or_direction_is_unknown_and_harms_no_other():
    vectors = np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [0.0, 2.0]])
    found = mean_cosines(vectors, np.array([0, 1, 2, 4]), 5)
    np.testing.assert_array_equal(found, [0.5, np.nan, np.nan, np.nan, 0.5])
    assert np.isnan(mean_cosines(np.empty((0, 0)), np.empty(0, np.int64), 2)).all()
