"""A hand-written loop gets what the trainers get."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from hbo.data.build import BuiltMixture
from hbo.errors import ConfigError
from hbo.integrations.torch import BalancedLoop, MixtureSampler
from hbo.policies import make_policy
from tests.support.tiny import tiny_model, tiny_tokenizer


def loop_over(built: BuiltMixture, model: Any, **settings: Any) -> BalancedLoop:
    policy = make_policy("hbo", update_interval=2)
    defaults = {"steps": 8, "batch_size": 4, "accumulation": 2}
    return BalancedLoop(model, built, policy, **(defaults | settings))


def train(loop: BalancedLoop, model: Any, steps: int) -> Iterator[int]:
    """A training loop as a user writes it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    collate = DataCollatorForSeq2Seq(tiny_tokenizer())
    model.train()
    for number, batch in enumerate(loop.loader(collate), start=1):
        with loop.watch(batch):
            loss = model(**batch).loss
        loss.backward()
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
            loop.step()
            yield number // 2
            if number // 2 == steps:
                return


@pytest.mark.parametrize("cut", [0, 3])
def test_it_trains_adapts_and_resumes_exactly(built: BuiltMixture, cut: int) -> None:
    whole_model, cut_model = tiny_model(), tiny_model()
    whole, first = loop_over(built, whole_model), loop_over(built, cut_model)
    assert list(train(whole, whole_model, 8)) == list(range(1, 9))
    list(train(first, cut_model, cut) if cut else ())
    saved = json.loads(json.dumps(first.state_dict()))
    second = loop_over(built, cut_model)
    second.load_state_dict(saved)
    list(train(second, cut_model, 8 - cut))
    assert whole.balancer.stream_sha256 == second.balancer.stream_sha256
    assert np.array_equal(whole.balancer.probabilities, second.balancer.probabilities)
    assert not np.allclose(whole.balancer.probabilities, built.mixture.sizes / 93)
    for name, value in whole_model.state_dict().items():
        assert torch.equal(value, cut_model.state_dict()[name])


def test_metrics_speak_of_each_subset(built: BuiltMixture) -> None:
    model = tiny_model()
    loop = loop_over(built, model)
    list(train(loop, model, 8))
    metrics = loop.metrics()
    shares = [metrics[f"mixture/{name}/share"] for name in ("copy", "add", "noise")]
    assert np.isclose(sum(shares), 1, atol=1e-3)
    assert metrics["mixture/copy/loss"] > 0
    assert loop.metrics() == {}


def test_ranks_divide_each_step_between_them(built: BuiltMixture) -> None:
    one = loop_over(built, tiny_model())
    whole = np.array(list(one.sampler)).reshape(8, 8)
    parts = [list(MixtureSampler(one.balancer, 8, 2, rank, 2)) for rank in (0, 1)]
    for step in range(8):
        shares = [np.array(part).reshape(8, 4)[step] for part in parts]
        assert sorted(np.concatenate(shares)) == sorted(whole[step])


def test_what_cannot_be_dealt_or_looks_too_far_ahead_is_refused(built: BuiltMixture) -> None:
    loop = loop_over(built, tiny_model())
    with pytest.raises(ConfigError, match="cannot be dealt"):
        MixtureSampler(loop.balancer, 8, 3, 0, 2)
    with pytest.raises(ConfigError, match="look-ahead"):
        loop.loader(DataCollatorForSeq2Seq(tiny_tokenizer()), num_workers=4)
