import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.measure.batches import collate, plan_batches
from hbo.measure.examples import IGNORED, Encoded
from tests.measure.cases import random_examples


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_index_once_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    indices = [int(index) for batch in batches for index in batch]
    assert sorted(indices) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    assert [lengths[i] for i in indices] == sorted(lengths, reverse=True)


def test_ties_keep_their_order():
    assert [batch.tolist() for batch in plan_batches([4, 4, 4, 4], 8)] == [[0, 1], [2, 3]]


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([1], 0)


def test_collate_pads_on_the_right_and_masks_the_padding():
    batch = collate(
        [
            Encoded(np.array([1, 2, 3]), np.array([-100, 2, 3])),
            Encoded(np.array([4]), np.array([4])),
        ],
        pad_id=9,
    )
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]


def test_an_example_counts_the_tokens_that_have_a_loss():
    example = Encoded(np.array([5, 6, 7]), np.array([5, -100, 7]))
    assert (example.num_tokens, example.response_tokens) == (3, 1)
    assert example.alone is None
    assert random_examples(1)[0].alone.response_tokens > 0


@pytest.mark.parametrize(
    "arguments",
    [([1, 2], [1]), ([1], [1], [1], None), ([1], [1], [1, 2], [1])],
)
def test_ids_and_labels_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError, match=r"alone|labels"):
        Encoded(*(None if value is None else np.array(value) for value in arguments))
