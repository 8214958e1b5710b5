import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.data.holdout import halve, hold_out, rows_without, some_rows
from hbo.errors import ConfigError, DataError

fractions = st.floats(min_value=0, max_value=0.5, exclude_min=True)
prompt_lists = st.lists(st.text(max_size=3), min_size=3, max_size=60).filter(
    lambda prompts: len(set(prompts)) >= 3
)


@given(prompt_lists, fractions)
def test_every_row_is_on_one_side_and_every_prompt_too(prompts, fraction):
    parts = hold_out(prompts, fraction)
    rows = (parts.train, parts.validation, parts.test)
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(prompts)))
    assert all(len(part) >= 1 for part in rows)
    sides = [{prompts[row] for row in part} for part in rows]
    assert sum(len(side) for side in sides) == len(set(prompts))


@given(prompt_lists, fractions, st.randoms(use_true_random=False))
def test_order_does_not_matter(prompts, fraction, random):
    def sides(listed):
        parts = hold_out(listed, fraction)
        return [sorted({listed[r] for r in p}) for p in (parts.train, parts.validation, parts.test)]

    shuffled = list(prompts)
    random.shuffle(shuffled)
    assert sides(prompts) == sides(shuffled)


@given(st.integers(min_value=60, max_value=300), st.integers(min_value=0, max_value=300))
def test_appending_rows_moves_no_row_into_or_out_of_training(count, more):
    prompts = [f"question {i}" for i in range(count + more)]
    before, after = hold_out(prompts[:count], 0.2), hold_out(prompts, 0.2)
    np.testing.assert_array_equal(before.train, after.train[after.train < count])


@given(st.integers(min_value=3, max_value=200), st.sampled_from([0.05, 0.25, 0.5]))
def test_the_held_out_prompts_are_halved_exactly(count, fraction):
    parts = hold_out([f"question {i}" for i in range(count)], fraction)
    assert len(parts.validation) >= 1
    assert len(parts.test) - len(parts.validation) in (0, 1)


def test_a_prompt_is_on_the_same_side_in_every_subset():
    first = [f"question {i}" for i in range(200)]
    second = [f"question {i}" for i in range(100, 400)]
    one, two = hold_out(first, 0.3), hold_out(second, 0.3)
    ours = {first[row] for row in one.train}
    theirs = {second[row] for row in two.train}
    assert ours & set(second) == theirs & set(first)


def test_shares_come_out_as_asked():
    parts = hold_out([f"question {i}" for i in range(20_000)], 0.1)
    held = len(parts.validation) + len(parts.test)
    assert held / 20_000 == pytest.approx(0.1, abs=0.01)  # 4.7 standard deviations
    assert len(parts.test) / held == pytest.approx(0.5, abs=0.05)


def test_the_choice_is_pinned():
    """A change of the hash would move examples between training and test for every user."""
    parts = hold_out([f"question {i}" for i in range(12)], 0.5)
    assert parts.validation.tolist() == [7]
    assert parts.test.tolist() == [4, 11]


@pytest.mark.parametrize("fraction", [0, -0.1, 0.51, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ConfigError, match=r"allowed are numbers above 0 up to 0\.5"):
        hold_out(["a", "b", "c"], fraction)


def test_too_few_prompts():
    with pytest.raises(
        DataError, match=r"2 different prompts are too few.*give eval_files"
    ) as error:
        hold_out(["a", "b", "a", "b"], 0.1, where="a.jsonl")
    assert error.value.where == "a.jsonl"
    with pytest.raises(DataError, match=r"at least two different prompts"):
        halve(["a", "a"])


@given(st.lists(st.text(max_size=2), min_size=2, max_size=30).filter(lambda p: len(set(p)) >= 2))
def test_halves_of_a_given_set(prompts):
    validation, test = halve(prompts)
    assert sorted(np.concatenate([validation, test]).tolist()) == list(range(len(prompts)))
    assert len(validation) and len(test)
    assert not {prompts[row] for row in validation} & {prompts[row] for row in test}


def test_rows_without():
    assert rows_without(["a", "b", "a", "c"], ["a", "x"]).tolist() == [1, 3]
    assert rows_without([], ["a"]).tolist() == []


@given(st.lists(st.text(max_size=3), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_share_of_the_prompts_is_part_of_any_larger_share(prompts, share):
    rows = some_rows(prompts, share)
    chosen = {prompts[row] for row in rows}
    assert len(chosen) == math.ceil(share * len(set(prompts)))
    assert rows.tolist() == [row for row, prompt in enumerate(prompts) if prompt in chosen]
    assert set(rows) <= set(some_rows(prompts, min(1.0, 1.5 * share)))
    assert len(some_rows(prompts, 1.0)) == len(prompts)
