"""A beginning that examples share is run once, where a pass may be cut in two."""

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from hbo.errors import EnvironmentProblem
from hbo.measure.examples import IGNORED, Encoded
from hbo.measure.prefix import shared_length
from hbo.measure.response import response_losses
from hbo.measure.scoring import score_examples
from tests.measure.cases import VOCABULARY, naive_losses, out_of_memory_above, random_examples
from tests.measure.families import family
from tests.measure.test_response import models
from tests.support.tiny import tiny_model

# peft asks Transformers by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")


def with_one_beginning(count=24, length=7):
    generator = np.random.default_rng(0)
    ids = generator.integers(0, VOCABULARY, length).astype(np.int32)
    unlabelled = np.full(length, IGNORED, dtype=np.int32)
    return [
        Encoded(np.concatenate([ids, e.input_ids]), np.concatenate([unlabelled, e.labels]))
        for e in random_examples(count, longest=8)
    ]


def tokens_run(model):
    """Lists the tokens of each pass from now on."""
    sizes = []
    model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    return sizes


SHARING = {name: make for name, make in models() if name != "soft-capped"} | {
    name: lambda name=name: family(name) for name in ("qwen2", "qwen3", "mixtral")
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in SHARING.items()])
def test_a_shared_beginning_is_run_once_and_changes_no_loss(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    examples, sizes = with_one_beginning(), tokens_run(model)
    found = response_losses(model, examples, tokens_per_batch=90, share_prefix=True)
    assert sizes[0] == (1, 7) and len(sizes) > 2
    beginnings = 7 * (len(examples) - 1)
    assert sum(rows * length for rows, length in sizes[1:]) < 1.3 * (
        sum(example.num_tokens for example in examples) - beginnings
    )
    np.testing.assert_allclose(found, naive_losses(model, examples), atol=1e-5)


def virtual_tokens(kind):
    return get_peft_model(tiny_model(), kind(task_type="CAUSAL_LM", num_virtual_tokens=3))


def other_code():
    model = tiny_model()
    model.__class__ = type("Other", (type(model),), {"__module__": "somewhere"})
    return model


def stretched():
    model = tiny_model()
    model.model.rotary_emb.rope_type = "dynamic"
    return model


REFUSED = {
    "window": lambda: family("mistral"),
    "some-windows": lambda: family("gemma3"),
    "prompt-tuning": lambda: virtual_tokens(PromptTuningConfig),
    "prefix-tuning": lambda: virtual_tokens(PrefixTuningConfig),
    "other-code": other_code,
    "rotary": stretched,
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in REFUSED.items()])
def test_where_a_pass_may_not_be_cut_everything_is_run(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    examples = with_one_beginning()
    expected = response_losses(model, examples)
    assert np.array_equal(response_losses(model, examples, share_prefix=True), expected)


def test_what_predicts_a_label_is_not_shared():
    ids = np.arange(20)
    labels = np.where(ids >= 12, ids, IGNORED)
    assert shared_length([Encoded(ids, labels)] * 9) == 11
    assert shared_length([Encoded(ids, ids)] * 9) == 0
    other = np.where(ids == 4, 0, ids)
    assert shared_length([Encoded(ids, labels)] * 5 + [Encoded(other, labels)] * 5) == 4


def test_a_beginning_too_short_to_pay_is_not_shared():
    examples = with_one_beginning(count=9, length=1)
    assert shared_length(examples) == 0
    assert shared_length(with_one_beginning(count=1)) == 0
    assert shared_length([]) == 0


def test_memory_that_a_beginning_does_not_fit_in_is_one_clear_line():
    model = tiny_model()
    out_of_memory_above(model, tokens=3)
    with pytest.raises(EnvironmentProblem, match=r"out of memory on one example of \d+ tokens"):
        response_losses(model, with_one_beginning(), share_prefix=True)


def test_half_the_batch_follows_the_same_beginning_where_memory_runs_out():
    model, examples = tiny_model(), with_one_beginning()
    expected = response_losses(model, examples)
    sizes = out_of_memory_above(model, tokens=60)
    found = response_losses(model, examples, tokens_per_batch=200, share_prefix=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sizes[0] == 7 and max(sizes) > 60


def test_a_shard_runs_its_shared_beginning_once_and_the_head_on_responses_only():
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))
    sizes, one = tokens_run(model), random_examples(1, seed=5)[0]
    score_examples(model, [one] * 8, shard_size=4, alone=True)
    # One token shared, as in the pass over responses alone, does not pay.
    assert [rows for rows, _ in sizes] == [1, 4, 1, 4, 4, 4]
    assert sum(seen) == 8 * (one.response_tokens + one.alone.response_tokens)
