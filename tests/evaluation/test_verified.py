"""Answers judged by a verifier, against `generate` and a judge, one prompt at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hbo.evaluation import HeldoutExample, evaluate_heldout, find_options
from hbo.evaluation.heldout import _end_ids
from hbo.evaluation.passes import PassSettings, greedy_matches
from hbo.evaluation.verified import AnswerReader, answer_limit, greedy_answers, verified_answers
from tests.evaluation.cases import END, PAD, TOKENIZER, choices, example, from_ids
from tests.evaluation.test_passes import generate, tiny_gemma, tiny_mamba
from tests.support.fake_ranks import on_ranks
from tests.support.tiny import tiny_model

SETTINGS = PassSettings(tokens_per_batch=200, pad_id=PAD)
MODELS = [tiny_model, tiny_gemma, tiny_mamba]
LONG = "a long answer, " * 6


def read(tokens, ends):
    """The obvious reading: what is before the first end of turn; None where there is none."""
    for place, token in enumerate(tokens):
        if token in ends:
            return TOKENIZER.decode(tokens[:place], skip_special_tokens=True).strip()
    return None


def mixed(model, ends, n=12):
    """Examples whose greedy answer is the response, is right in other words, or is wrong.

    The verifier of each third one takes what greedy decoding gives (as far as it ends), of the
    next what the response says, and of the last nothing.
    """
    examples = []
    for i, each in enumerate(choices(n, ["A", "no"])):
        answer = generate(model, each.prompt_ids, answer_limit(each))
        text = read(answer, ends)
        stop = next((place for place, token in enumerate(answer, 1) if token in ends), 4)
        wanted = [text, each.response, None][i % 3]
        if i % 4 == 3:  # known to the model already
            each = from_ids(each.prompt_ids, answer[:stop], text or "")
        examples.append(replace(each, verify=lambda said, wanted=wanted: said == wanted))
    return examples


@pytest.mark.parametrize("make", MODELS)
def test_answers_are_those_of_generate_up_to_the_end_or_the_limit(make):
    model, examples = make().eval(), choices(9)
    whole = [generate(model, each.prompt_ids, answer_limit(each)) for each in examples]
    ends = frozenset({whole[0][3], whole[4][1]})
    expected = []
    for tokens in whole:
        stops = [place for place, token in enumerate(tokens, 1) if token in ends]
        expected.append(tokens[: stops[0]] if stops else tokens)
    assert greedy_answers(model, examples, ends, SETTINGS) == expected
    assert len({len(tokens) for tokens in expected}) > 1


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_the_verdicts_are_those_of_generating_and_judging_every_answer(make, tokens_per_batch):
    model = make().eval()
    # Of most answers the third or fourth token; two go on to the limit or end at once.
    ends = frozenset(
        generate(model, each.prompt_ids, 4)[2 + i % 2] for i, each in enumerate(choices(10))
    )
    examples = mixed(model, ends)
    settings = replace(SETTINGS, tokens_per_batch=tokens_per_batch)
    _, matches = greedy_matches(model, examples, ends, settings)
    reader = AnswerReader(TOKENIZER, ends)
    found = verified_answers(model, examples, matches, reader, settings)
    texts = [read(generate(model, each.prompt_ids, answer_limit(each)), ends) for each in examples]
    expected = [
        text is not None and each.verify(text) for text, each in zip(texts, examples, strict=True)
    ]
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)
    # Exact match is neither enough (the verifier decides) nor needed (another form may be right).
    assert 0 < matches.sum() < len(matches)
    ended = np.array([read(each.response_ids, ends) is not None for each in examples])
    assert np.any(found & ~matches)
    assert np.any(matches & ended & found)
    assert np.any(matches & ended & ~found)


def test_an_answer_without_an_end_is_wrong():
    model = tiny_model().eval()
    each = choices(1)[0]
    whole = generate(model, each.prompt_ids, answer_limit(each))
    # The response was cut: its tokens are what greedy decoding begins with, and no answer yet.
    cut = replace(from_ids(each.prompt_ids, whole[:2], "x"), verify=lambda _text: True)
    reader = AnswerReader(TOKENIZER, frozenset())
    assert greedy_matches(model, [cut], frozenset(), SETTINGS)[1].tolist() == [True]
    never = verified_answers(model, [cut], np.array([True]), reader, SETTINGS)
    assert never.tolist() == [False]
    late = AnswerReader(TOKENIZER, frozenset({whole[answer_limit(cut) - 1]}))
    assert verified_answers(model, [cut], np.array([True]), late, SETTINGS).tolist() == [True]


def test_the_text_ends_at_the_end_of_turn_and_has_no_space_around_it():
    reader = AnswerReader(TOKENIZER, frozenset({END}))
    tokens = TOKENIZER(" it 's , ok \n")["input_ids"]
    assert reader.text([PAD, *tokens, END, *TOKENIZER("more")["input_ids"]]) == "it 's , ok"
    assert reader.text(tokens) is None
    assert reader.text([END]) == ""


def always(subset, verdict=True):
    return [replace(each, verify=lambda _text: verdict) for each in subset]


def test_a_verifier_wins_over_options_and_long_answers_but_all_must_have_one():
    model = tiny_model().eval()
    _, *rest = examples = choices(6)
    data = {
        "choice": always(examples),
        "long": always([example(f"tell {i}", LONG + str(i)) for i in range(3)]),
        "some": [examples[0], *always(rest)],
    }
    results = evaluate_heldout(model, TOKENIZER, data)
    assert {name: each.grading for name, each in results.items()} == {
        "choice": "verifier",
        "long": "verifier",
        "some": "options",
    }
    plain = evaluate_heldout(model, TOKENIZER, {"choice": examples})["choice"]
    np.testing.assert_allclose(results["choice"].losses, plain.losses, rtol=1e-4)
    assert find_options(examples) is not None
    two_turns = np.where(np.isin(np.arange(8), (2, 3, 6, 7)), np.arange(8), -100)
    chat = HeldoutExample(
        replace(examples[0].encoded, input_ids=np.arange(8), labels=two_turns), ""
    )
    assert evaluate_heldout(model, TOKENIZER, {"x": always([chat])})["x"].grading is None


@pytest.mark.parametrize("world_size", [2, 5])
def test_any_number_of_ranks_gives_the_same_verdicts_and_generates_each_answer_once(world_size):
    model = tiny_model().eval()
    first = generate(model, choices(1)[0].prompt_ids, 3)
    model.generation_config.eos_token_id = first
    ends = _end_ids(model, TOKENIZER)
    examples = mixed(model, ends)
    expected = evaluate_heldout(model, TOKENIZER, {"x": examples}, tokens_per_batch=100)["x"]
    assert 0 < expected.accuracy < 1
    models = [tiny_model() for _ in range(world_size)]
    asked = []
    for each in models:
        each.generation_config.eos_token_id = first

    def work(ranks):
        counted = [replace(each, verify=_counting(each.verify, asked)) for each in examples]
        return evaluate_heldout(
            models[ranks.rank], TOKENIZER, {"x": counted}, tokens_per_batch=100, ranks=ranks
        )["x"]

    for found in on_ranks(world_size, work):
        assert found.correct.tolist() == expected.correct.tolist()
        assert found.losses.tobytes() == expected.losses.tobytes()
    assert len(asked) < world_size * len(examples)


def _counting(verify, asked):
    def counted(text):
        asked.append(text)
        return verify(text)

    return counted


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = tiny_model(dropout=0.5).train()
    state = torch.get_rng_state()
    examples = always(choices(4))
    first, again = (evaluate_heldout(model, TOKENIZER, {"x": examples})["x"] for _ in range(2))
    assert first.correct.tolist() == again.correct.tolist()
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert not model.lm_head._forward_pre_hooks
