"""The fast passes against one unpadded forward per sequence, and against `generate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MambaConfig, MambaForCausalLM

from hbo.evaluation import find_options
from hbo.evaluation.passes import (
    PassSettings,
    greedy_matches,
    option_log_likelihoods,
    slow_option_log_likelihoods,
)
from tests.evaluation.cases import PAD, TOKENIZER, choices, from_ids, log_likelihood
from tests.support.tiny import tiny_model

SETTINGS = PassSettings(tokens_per_batch=200, pad_id=PAD)


def tiny_gemma():
    """Sliding and full attention in turn: the cache keeps fewer positions than the prompt has."""
    config = Gemma3TextConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma3ForCausalLM(config).eval()


def tiny_mamba():
    config = MambaConfig(
        vocab_size=len(TOKENIZER), hidden_size=16, state_size=4, num_hidden_layers=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MambaForCausalLM(config).eval()


@pytest.mark.parametrize("make", [tiny_model, tiny_gemma, tiny_mamba])
def test_option_log_likelihoods_are_those_of_single_sequences(make):
    model, examples = make().eval(), choices(9)
    options = find_options(examples)
    assert options is not None and sorted(options) == ["A", "B", "yes"]
    expected = [
        [log_likelihood(model, each.prompt_ids, ids) for ids in options.values()]
        for each in examples
    ]
    fast = option_log_likelihoods(model, examples, options, SETTINGS)
    slow = slow_option_log_likelihoods(model, examples, options, SETTINGS)
    np.testing.assert_allclose(fast, expected, rtol=1e-4)
    np.testing.assert_allclose(slow, expected, rtol=1e-4)


@pytest.mark.parametrize("tokens_per_batch", [1, 64, 4096])
def test_options_do_not_depend_on_the_cut_into_batches(tokens_per_batch):
    model, examples = tiny_model(), choices(8)
    options = find_options(examples)
    seen = []
    settings = PassSettings(tokens_per_batch, PAD)
    found = option_log_likelihoods(
        model, examples, options, settings, lambda done, total: seen.append((done, total))
    )
    reference = option_log_likelihoods(model, examples, options, SETTINGS)
    np.testing.assert_allclose(found, reference, rtol=1e-4)
    assert seen[-1] == (8, 8)


def test_options_of_one_token_need_no_second_pass():
    model = tiny_model()
    examples = [from_ids([1, 2, 3 + i], [7 + i % 2], "xy"[i % 2]) for i in range(4)]
    options = find_options(examples)
    expected = [
        [log_likelihood(model.eval(), each.prompt_ids, ids) for ids in options.values()]
        for each in examples
    ]
    found = option_log_likelihoods(model, examples, options, SETTINGS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_greedy_matches_are_what_generate_gives():
    model = tiny_model().eval()
    examples = []
    for i, each in enumerate(choices(12, ["A", "B"])):
        wanted = generate(model, each.prompt_ids, 4)
        if i % 3 == 0:
            wanted = [*wanted[:-1], (wanted[-1] + 1) % 256]  # wrong in the last token only
        if i % 3 == 1:
            wanted = [*wanted, *each.response_ids]  # right at first, then not
        examples.append(from_ids(each.prompt_ids, wanted, "x"))
    losses, matches = greedy_matches(model, examples, frozenset(), SETTINGS)
    expected = [
        generate(model, each.prompt_ids, len(each.response_ids)) == list(each.response_ids)
        for each in examples
    ]
    assert matches.tolist() == expected
    assert 0 < sum(expected) < len(expected)
    np.testing.assert_allclose(
        losses,
        [
            -log_likelihood(model, each.prompt_ids, each.response_ids) / len(each.response_ids)
            for each in examples
        ],
        rtol=1e-4,
    )


def test_what_the_template_puts_after_the_end_of_turn_is_not_judged():
    model = tiny_model().eval()
    prompt = choices(1)[0].prompt_ids
    first = generate(model, prompt, 1)
    wrong = [(generate(model, [*prompt, *first], 1)[0] + 1) % 256]
    example = from_ids(prompt, [*first, *wrong], "x")
    ends = frozenset(first)  # the first token ends the turn
    assert greedy_matches(model, [example], ends, SETTINGS)[1].tolist() == [True]
    assert greedy_matches(model, [example], frozenset(), SETTINGS)[1].tolist() == [False]


def generate(model, prompt, tokens):
    """Greedy decoding by transformers, never stopping early."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    return output[0, len(prompt) :].tolist()
