import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from hbo.errors import ConfigError
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.uncertainty import SPREADS, check_dropout, uncertainties
from hbo.signals import (
    HELDOUT_END_ENTROPY,
    HELDOUT_ENTROPY,
    HELDOUT_EXPECTED,
    HELDOUT_PREDICTED,
    HELDOUT_VARIANCE,
    HELDOUT_VARIATION,
    UNCERTAINTIES,
)
from tests.measure.cases import out_of_memory_above, random_examples, two_turns
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")

EXAMPLES = [*random_examples(6), two_turns()]


def laws(model, example):
    """(tokens, vocabulary) laws before each response token, and the tokens, from all logits."""
    ids = torch.as_tensor(example.input_ids.astype(np.int64))[None]
    with torch.no_grad():
        law = model(input_ids=ids).logits.double().softmax(dim=-1)[0, :-1]
    mask = torch.as_tensor(example.labels[1:] != IGNORED)
    return law[mask].numpy(), example.labels[1:][mask.numpy()]


def naive(model, examples):
    model.eval()
    entropies, ends, predicted, expected = [], [], [], []
    for example in examples:
        law, wanted = laws(model, example)
        entropy = -(law * np.log(law)).sum(axis=1)
        entropies += entropy.tolist()
        ends.append(entropy[-1])
        predicted.append(np.exp(np.log(law.max(axis=1)).mean()))
        expected.append(np.exp(np.log(law[np.arange(len(wanted)), wanted]).mean()))
    return {
        HELDOUT_ENTROPY: np.mean(entropies),
        HELDOUT_END_ENTROPY: np.mean(ends),
        HELDOUT_PREDICTED: 1 - np.mean(predicted),
        HELDOUT_EXPECTED: 1 - np.mean(expected),
    }


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, **({"rtol": 1e-5} | tolerance), err_msg=name)


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    rates = {"attn_pdrop": 0.3, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, **sizes, **rates))


def lora(rate):
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, lora_dropout=rate)
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), config)


def test_one_pass_gives_the_four_measures_of_it():
    model = tiny_model()
    found = uncertainties(model, EXAMPLES, tokens_per_batch=80)
    assert_same(found, naive(model, EXAMPLES))
    assert not SPREADS & set(found)
    assert 0 < found[HELDOUT_PREDICTED] < found[HELDOUT_EXPECTED] < 1


def test_logits_are_cast_a_chunk_at_a_time(monkeypatch):
    expected = uncertainties(tiny_model(), EXAMPLES)
    monkeypatch.setattr("hbo.measure.uncertainty.LOGITS_PER_CHUNK", 3 * 259)
    assert_same(uncertainties(tiny_model(), EXAMPLES), expected, rtol=1e-12)


def test_a_law_that_rules_tokens_out_has_an_entropy():
    model = tiny_model()

    def rule_out(_head, _args, logits):
        logits[..., 200:] = -torch.inf

    model.lm_head.register_forward_hook(rule_out)
    assert 0 < uncertainties(model, EXAMPLES)[HELDOUT_ENTROPY] <= np.log(200)


@pytest.mark.parametrize(
    "make",
    [lambda: tiny_model(dropout=0.3), gpt2, lambda: lora(0.3)],
    ids=["llama", "gpt2", "lora"],
)
def test_passes_with_dropout_are_those_of_a_model_that_trains(make):
    model = make()
    seeds = [3, 4, 5]
    found = uncertainties(model, EXAMPLES[:1], seeds=seeds)
    passes = []
    model.train()
    for seed in seeds:
        torch.manual_seed(seed)
        law, wanted = laws(model, EXAMPLES[0])
        predicted, expected = law.max(axis=1), law[np.arange(len(wanted)), wanted]
        entropy = -(law * np.log(law)).sum(axis=1)
        geometric = (np.exp(np.log(p).mean()) for p in (predicted, expected))
        passes.append([entropy.mean(), entropy[-1], *geometric])
    entropy, end, predicted, expected = np.array(passes).T
    variance = np.var(expected, ddof=1)
    oracle = {
        HELDOUT_ENTROPY: entropy.mean(),
        HELDOUT_END_ENTROPY: end.mean(),
        HELDOUT_PREDICTED: 1 - predicted.mean(),
        HELDOUT_EXPECTED: 1 - expected.mean(),
        HELDOUT_VARIANCE: variance,
        HELDOUT_VARIATION: variance / expected.mean(),
    }
    assert_same(found, oracle, rtol=1e-4)
    assert variance > 0 and set(oracle) == UNCERTAINTIES


def test_spreads_are_means_over_examples():
    model = tiny_model(dropout=0.3)
    model.eval()
    found = uncertainties(model, EXAMPLES, seeds=range(80))
    alone = [uncertainties(model, [example], seeds=range(80)) for example in EXAMPLES]
    for name in SPREADS:  # other masks, so the same in the mean only
        expected = np.mean([values[name] for values in alone])
        assert found[name] == pytest.approx(expected, rel=0.3)


def test_seeds_decide_and_nothing_of_the_run_changes():
    model = tiny_model(dropout=0.3).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    one, same, other = (uncertainties(model, EXAMPLES, seeds=s) for s in ([1, 2], [1, 2], [1, 3]))
    assert one == same
    assert one[HELDOUT_VARIANCE] != other[HELDOUT_VARIANCE]
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_only_what_drops_out_is_put_in_train_mode():
    model = lora(0.3)
    names = {name for name, part in model.named_modules() if part in check_dropout(model)}
    assert names and all("lora_dropout" in name for name in names)
    assert {type(part).__name__ for part in check_dropout(tiny_model(dropout=0.1))} == {
        "LlamaAttention"
    }


@pytest.mark.parametrize("make", [tiny_model, lambda: lora(0.0)])
def test_passes_with_dropout_of_a_model_without_any_are_refused(make):
    with pytest.raises(ConfigError, match=r"this model has none .* leave it out, or train with"):
        uncertainties(make(), EXAMPLES, seeds=[1, 2])


def test_examples_without_a_response_are_left_out_and_alone_are_unknown():
    silent = Encoded(EXAMPLES[0].input_ids, np.full_like(EXAMPLES[0].labels, IGNORED))
    model = tiny_model(dropout=0.1)
    expected = uncertainties(model, EXAMPLES)
    assert_same(uncertainties(model, [silent, *EXAMPLES]), expected)
    for found in (uncertainties(model, [silent]), uncertainties(model, [], seeds=[1, 2])):
        assert all(np.isnan(value) for value in found.values())


def test_batches_shrink_where_memory_runs_out():
    model = tiny_model()
    expected = uncertainties(model, EXAMPLES)
    sizes = out_of_memory_above(model, 60)
    assert_same(uncertainties(model, EXAMPLES), expected)
    assert max(sizes) > 60 and min(sizes) <= 60
