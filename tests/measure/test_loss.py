import numpy as np
import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from hbo.measure import loss
from hbo.measure.batches import collate
from hbo.measure.loss import (
    example_losses_from_log_probs,
    example_losses_from_logits,
)
from tests.measure.cases import VOCABULARY, naive_losses, random_examples
from tests.support.tiny import tiny_model


@pytest.fixture
def examples():
    return random_examples(5, seed=3)


def assert_sums_and_tokens(found, model, examples):
    sums, tokens = found
    expected = np.array([example.response_tokens for example in examples])
    assert tokens.tolist() == expected.tolist()
    np.testing.assert_allclose(sums.numpy() / expected, naive_losses(model, examples), atol=1e-5)
    assert not sums.requires_grad


def test_log_probs_of_a_padded_batch_as_trl_gives_them(examples):
    model = tiny_model()
    add_fused_lm_head(model)
    batch = collate(examples, 0)
    outputs = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        fused_lm_head=True,
    )
    found = example_losses_from_log_probs(outputs.log_probs, outputs.label_mask)
    assert_sums_and_tokens(found, model, examples)
    assert found[0].sum().item() / found[1].sum().item() == pytest.approx(outputs.loss.item())


def padding_free(examples):
    rows = [{"input_ids": e.input_ids.tolist(), "labels": e.labels.tolist()} for e in examples]
    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows)


@pytest.mark.parametrize("fused", [True, False])
def test_padding_free_rows_equal_padded_ones(examples, fused):
    model = tiny_model()
    add_fused_lm_head(model)
    inputs = padding_free(examples)
    # Without flash attention only the positions tell the examples apart.
    outputs = model(**inputs, fused_lm_head=fused, use_cache=False)
    # A sequence starts where its position is 0.
    rows = (inputs["position_ids"] == 0).cumsum(dim=1)[:, 1:] - 1
    if fused:
        found = example_losses_from_log_probs(outputs.log_probs, outputs.label_mask, rows=rows)
    else:
        found = example_losses_from_logits(
            outputs.logits, inputs["labels"], rows=rows, num_examples=len(examples)
        )
    assert_sums_and_tokens(found, model, examples)


def test_logits_of_a_padded_batch_in_chunks(examples, monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 3 * VOCABULARY)
    model, batch = tiny_model(), collate(examples, 0)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    found = example_losses_from_logits(logits, batch.labels)
    assert_sums_and_tokens(found, model, examples)


def test_an_example_at_the_end_without_a_label_still_has_its_place():
    rows = torch.tensor([[0, 0, 1]])
    sums, tokens = example_losses_from_log_probs(
        torch.tensor([[-1.0, -2.0, -4.0]]),
        torch.tensor([[True, True, False]]),
        rows=rows,
        num_examples=3,
    )
    assert (sums.tolist(), tokens.tolist()) == ([3.0, 0.0, 0.0], [2, 0, 0])


def test_what_is_masked_may_be_nan_and_a_nan_stays_in_its_row():
    log_probs = torch.tensor([[-1.0, torch.nan], [torch.nan, -2.0]])
    mask = torch.tensor([[True, False], [True, True]])
    sums, _ = example_losses_from_log_probs(log_probs, mask)
    assert sums[0].item() == 1.0
    assert sums[1].isnan()
    owners = torch.tensor([[0, 0], [1, 1]])
    by_owner, _ = example_losses_from_log_probs(log_probs, mask, rows=owners)
    assert by_owner[0].item() == 1.0
    assert by_owner[1].isnan()
