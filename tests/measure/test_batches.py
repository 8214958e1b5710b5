from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hbo.measure.batches import (
    ACCELERATOR_BATCH_COST,
    BATCH_COST,
    batch_cost_on,
    collate,
    plan_batches,
)
from hbo.measure.examples import IGNORED, Encoded
from tests.measure.cases import random_examples


def cost(batches, lengths, batch_cost):
    """Padded tokens, and what the batches cost besides."""
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return padded + batch_cost * len(batches)


def cheapest(lengths, budget, batch_cost):
    """The least cost of all ways to cut the sorted row, each tried."""
    row = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    found = []
    for count in range(len(row)):
        for cuts in combinations(range(1, len(row)), count):
            ends = zip([0, *cuts], [*cuts, len(row)], strict=True)
            batches = [row[start:stop] for start, stop in ends]
            if all(len(b) == 1 or len(b) * lengths[b[0]] <= budget for b in batches):
                found.append(cost(batches, lengths, batch_cost))
    return min(found, default=0)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200), st.integers(0, 90))
def test_batches_hold_every_index_once_within_the_budget(lengths, budget, batch_cost):
    batches = plan_batches(lengths, budget, batch_cost)
    indices = [int(index) for batch in batches for index in batch]
    assert sorted(indices) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
    # Longest first, and in the order of the row where lengths are equal.
    assert indices == sorted(indices, key=lambda index: (-lengths[index], index))


@given(
    st.lists(st.integers(1, 12), max_size=9) | st.lists(st.sampled_from([3, 9]), max_size=9),
    st.integers(1, 60),
    st.integers(0, 30),
)
def test_no_way_to_cut_the_row_is_cheaper(lengths, budget, batch_cost):
    batches = plan_batches(lengths, budget, batch_cost)
    assert cost(batches, lengths, batch_cost) == cheapest(lengths, budget, batch_cost)


def test_what_a_batch_costs_decides_how_much_is_padded():
    lengths = [20] * 4 + [10] * 4
    assert [len(batch) for batch in plan_batches(lengths, 1000, batch_cost=39)] == [4, 4]
    assert [len(batch) for batch in plan_batches(lengths, 1000, batch_cost=41)] == [8]
    assert batch_cost_on(torch.device("cpu")) == BATCH_COST
    assert batch_cost_on(torch.device("cuda")) == ACCELERATOR_BATCH_COST


def test_many_examples_have_next_to_no_padding():
    lengths = np.random.default_rng(0).geometric(0.01, 20_000)
    batches = plan_batches(lengths, 4096)
    real = lengths.sum()
    assert real <= sum(len(batch) * lengths[batch].max() for batch in batches) < 1.01 * real


def test_an_overlong_example_is_alone():
    assert [batch.tolist() for batch in plan_batches([4, 50, 4], 8)] == [[1], [0, 2]]


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
