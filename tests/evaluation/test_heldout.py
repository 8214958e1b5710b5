"""Losses, accuracies and their averages; and that measuring leaves no trace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from hbo.evaluation import HeldoutExample, evaluate_heldout, find_options, macro
from hbo.evaluation import heldout as module
from hbo.evaluation.examples import is_short
from hbo.measure.examples import Encoded
from hbo.measure.response import response_losses
from tests.evaluation.cases import TOKENIZER, choices, example, log_likelihood
from tests.support.fake_ranks import on_ranks
from tests.support.tiny import tiny_model

LONG = "a long answer, " * 6


def subsets():
    return {
        "choice": choices(6),
        "exact": [example(f"say {i}", f"answer {i}") for i in range(11)],
        "open": [example(f"tell {i}", LONG + str(i)) for i in range(3)],
    }


def test_losses_are_those_of_scoring_and_are_weighted_by_token():
    model, data = tiny_model(), subsets()
    results = evaluate_heldout(model, TOKENIZER, data, tokens_per_batch=300)
    assert list(results) == list(data)
    for name, examples in data.items():
        expected = response_losses(model, [each.encoded for each in examples])
        result = results[name]
        np.testing.assert_allclose(result.losses, expected, rtol=1e-4)
        assert result.tokens.tolist() == [len(each.response_ids) for each in examples]
        assert result.loss == pytest.approx(np.average(expected, weights=result.tokens), rel=1e-4)
        assert result.perplexity == pytest.approx(math.exp(result.loss))
        assert result.examples == len(examples)


def test_loss_is_the_evaluation_loss_of_transformers():
    model, examples = tiny_model().eval(), choices(5)
    result = evaluate_heldout(model, TOKENIZER, {"x": examples})["x"]
    sums = [log_likelihood(model, each.prompt_ids, each.response_ids) for each in examples]
    assert result.loss == pytest.approx(-sum(sums) / sum(len(e.response_ids) for e in examples))


def test_grading_follows_the_answers():
    results = evaluate_heldout(tiny_model(), TOKENIZER, subsets())
    assert {name: result.grading for name, result in results.items()} == {
        "choice": "options",
        "exact": "exact",
        "open": None,
    }
    assert results["open"].accuracy is None and results["open"].correct is None
    assert results["exact"].accuracy == 0.0


def test_accuracy_is_the_share_whose_true_option_is_likeliest():
    model, examples = tiny_model().eval(), choices(12)
    options = find_options(examples)
    right = []
    for each in examples:
        scores = {
            text: log_likelihood(model, each.prompt_ids, ids) for text, ids in options.items()
        }
        right.append(max(scores, key=scores.get) == each.response)
    result = evaluate_heldout(model, TOKENIZER, {"x": examples})["x"]
    assert result.correct.tolist() == right
    assert result.accuracy == np.mean(right)
    assert 0 < result.accuracy < 1


def test_given_options_win_over_those_of_the_heldout_examples():
    model = tiny_model()
    few = choices(2)
    everything = find_options(choices(9, list("ABCDE")) + few)
    given = evaluate_heldout(model, TOKENIZER, {"x": few}, options={"x": everything})["x"]
    assert given.grading == "options"
    # Many different answers in training: no choice, though the held-out part has but two answers.
    refused = evaluate_heldout(model, TOKENIZER, {"x": few}, options={"x": None})["x"]
    assert refused.grading == "exact"
    np.testing.assert_allclose(given.losses, refused.losses, rtol=1e-4)


def test_an_answer_cut_by_truncation_or_not_among_the_options_has_its_own_loss():
    model = tiny_model().eval()
    examples = [*choices(6), example("cut off", "A", tail=[]), example("other", "C")]
    options = find_options(choices(6))
    result = evaluate_heldout(model, TOKENIZER, {"x": examples}, options={"x": options})["x"]
    for row in (6, 7):
        each = examples[row]
        expected = -log_likelihood(model, each.prompt_ids, each.response_ids)
        assert result.losses[row] == pytest.approx(expected / len(each.response_ids), rel=1e-4)
    assert not result.correct[7]


def test_conversations_and_texts_are_not_graded():
    ids = np.arange(8, dtype=np.int32)
    two_turns = np.where(np.isin(ids, (2, 3, 6, 7)), ids, -100)
    chat = HeldoutExample(Encoded(ids, two_turns), "x")
    text = HeldoutExample(Encoded(ids, ids.copy()), "")
    results = evaluate_heldout(tiny_model(), TOKENIZER, {"chat": [chat], "text": [text]})
    assert [result.grading for result in results.values()] == [None, None]
    assert all(math.isfinite(result.loss) for result in results.values())


def test_options_need_two_to_ten_short_answers():
    assert find_options([]) is None
    assert find_options(choices(4, ["same"])) is None
    assert len(find_options(choices(20, [str(i) for i in range(10)]))) == 10
    assert find_options(choices(22, [str(i) for i in range(11)])) is None
    assert find_options(choices(4, ["A", LONG])) is None
    assert is_short("x" * 80) and not is_short("x" * 81)


def test_one_tokenisation_an_option_the_most_frequent():
    examples = [*choices(6, ["A", "B"]), example("cut", "A", tail=[])]
    assert find_options(examples)["A"] == examples[0].response_ids


def test_the_model_is_left_as_it_was():
    model = tiny_model(dropout=0.5).train()
    model.lm_head.eval()
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    first = evaluate_heldout(model, TOKENIZER, subsets())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(each.grad, gradients[n]) for n, each in model.named_parameters())
    assert not model.lm_head._forward_pre_hooks
    # Dropout was off: twice the same.
    again = evaluate_heldout(model, TOKENIZER, subsets())
    assert [each.loss for each in first.values()] == [each.loss for each in again.values()]


# peft 0.21 reads an attribute that transformers 5.23 deprecates.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_and_the_patched_forward_of_trl_measure_the_same():
    plain = evaluate_heldout(tiny_model(), TOKENIZER, subsets())
    patched = tiny_model()
    add_fused_lm_head(patched)
    patched.config.use_cache = False
    adapted = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    for model in (patched, adapted):
        results = evaluate_heldout(model, TOKENIZER, subsets())
        for name, result in results.items():
            np.testing.assert_allclose(result.losses, plain[name].losses, rtol=1e-4)
            assert result.accuracy == plain[name].accuracy


def test_progress_counts_all_examples():
    seen = []
    evaluate_heldout(
        tiny_model(), TOKENIZER, subsets(), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def rows_of(model):
    """Rows that the model runs from now on, in a list."""
    rows = []
    model.register_forward_pre_hook(
        lambda _module, _args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    return rows


@pytest.mark.parametrize("world_size", [2, 3, 5, 30])
def test_any_number_of_ranks_measures_the_same_bits_and_each_batch_once(world_size):
    alone = tiny_model()
    rows = rows_of(alone)
    data = {**subsets(), "cut": [*choices(6), example("cut", "A", tail=[])], "empty": []}
    options = {"cut": find_options(choices(6))}
    settings = {"options": options, "tokens_per_batch": 300}
    expected = evaluate_heldout(alone, TOKENIZER, data, **settings)
    # Made here: threads that seed the global generator at once would disturb each other.
    models = [tiny_model() for _ in range(world_size)]

    def work(ranks):
        model = models[ranks.rank]
        seen = rows_of(model)
        calls = []
        results = evaluate_heldout(
            model,
            TOKENIZER,
            data,
            **settings,
            ranks=ranks,
            progress=lambda *call: calls.append(call),
        )
        return results, sum(seen), calls[-1]

    found = on_ranks(world_size, work)
    for results, _, last in found:
        assert last == (27, 27)
        for name, result in results.items():
            assert result.losses.tobytes() == expected[name].losses.tobytes()
            assert result.loss == expected[name].loss or math.isnan(result.loss)
            assert result.accuracy == expected[name].accuracy
    assert sum(seen for _, seen, _ in found) == sum(rows)
    assert found[1][1] > 0


def test_the_losses_are_bit_for_bit_those_of_one_pass_over_all():
    model, examples = tiny_model(), subsets()["open"]
    result = evaluate_heldout(model, TOKENIZER, {"x": examples}, tokens_per_batch=250)["x"]
    expected = response_losses(model, [each.encoded for each in examples], tokens_per_batch=250)
    np.testing.assert_array_equal(result.losses, expected)


def test_of_a_sharded_model_every_rank_measures_everything(monkeypatch):
    monkeypatch.setattr(module, "probed_together", lambda _model: True)
    models = [tiny_model(), tiny_model()]

    def work(ranks):
        model = models[ranks.rank]
        rows = rows_of(model)
        evaluate_heldout(model, TOKENIZER, subsets(), ranks=ranks)
        return sum(rows)

    first, second = on_ranks(2, work)
    assert first == second > 0


def test_macro_counts_every_subset_once_and_leaves_out_empty_ones():
    data = {**subsets(), "empty": []}
    results = evaluate_heldout(tiny_model(), TOKENIZER, data)
    assert math.isnan(results["empty"].loss) and results["empty"].accuracy is None
    average = macro(results)
    losses = [results[name].loss for name in ("choice", "exact", "open")]
    assert average.loss == pytest.approx(np.mean(losses))
    assert average.perplexity == pytest.approx(math.exp(average.loss))
    accuracies = [results["choice"].accuracy, results["exact"].accuracy]
    assert average.accuracy == pytest.approx(np.mean(accuracies))
    assert macro({"empty": results["empty"]}).accuracy is None
