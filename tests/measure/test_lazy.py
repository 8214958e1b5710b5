"""Scoring reads its examples a shard at a time, so memory does not grow with their number."""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from hbo.measure.response import response_statistics
from hbo.measure.scoring import score_examples
from tests.measure.cases import random_examples
from tests.support.tiny import tiny_model


class Lazy(Sequence):
    """Examples made anew whenever they are read, and how many had their tokens alive at once."""

    def __init__(self, count):
        self.count, self.alive, self.most = count, 0, 0

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(self.count))]
        if place >= self.count:
            raise IndexError
        example = random_examples(1, seed=place)[0]
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(example.input_ids, self.forget)
        return example

    def forget(self):
        self.alive -= 1


@pytest.mark.parametrize("count", [12, 96])
def test_no_more_than_two_shards_of_examples_are_in_memory(count, tmp_path):
    lazy, model = Lazy(count), tiny_model()
    found = score_examples(model, lazy, alone=True, cache_dir=tmp_path, key="a", shard_size=4)
    # One that is being read while the last is still there.
    assert 4 <= lazy.most <= 8 and lazy.alive <= 4
    expected = response_statistics(model, list(lazy), alone=True)
    np.testing.assert_allclose(found.loss, expected.loss, atol=1e-5)
    np.testing.assert_allclose(found.alone_loss, expected.alone_loss, atol=1e-5)
