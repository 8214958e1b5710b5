"""A damaged state of a balancer or a stream is refused in one line, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbo.balancer import Balancer
from hbo.difficulty.metrics import ResponseStatistics
from hbo.errors import StateError
from hbo.integrations.checkpoints import newest_checkpoint
from hbo.measure.scoring import score_examples
from hbo.mixture import Mixture
from hbo.policies import make_policy
from hbo.sampling.stream import Stream
from tests.measure.cases import random_examples
from tests.security.mutate import damaged, damaged_bytes
from tests.support.tiny import tiny_model

SIZES = np.array([[4, 3], [2, 5]])


def stream() -> Stream:
    return Stream(SIZES, 3, max_draws=[20, 30])


def balancer() -> Balancer:
    mixture = Mixture(("a", "b"), SIZES, "data")
    policy = make_policy("hbo", {"update_interval": 2})
    return Balancer(mixture, policy, seed=3, draws_per_step=2, lag=1)


def saved_stream() -> dict[str, Any]:
    made = stream()
    made.push(0, np.full((2, 2), 0.25))
    made.take(6)
    return made.state_dict()


def saved_balancer() -> dict[str, Any]:
    made = balancer()
    for _ in range(4):
        ids = made.advance()
        made.observe(ids, {"loss": np.linspace(1, 2, len(ids)), "tokens": np.ones(len(ids))})
        if made.due:
            made.update()
    made.observations.gather()
    return json.loads(json.dumps(made.state_dict()))  # type: ignore[no-any-return]


def score(folder: Path, notice: Callable[[str], None]) -> ResponseStatistics:
    settings_ = {"key": "k", "shard_size": 2, "cache_dir": folder, "notice": notice}
    return score_examples(tiny_model(), random_examples(4), **settings_)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of scores; never written to."""
    folder = tmp_path_factory.mktemp("scores")
    score(folder, print)
    return folder


STREAM, BALANCER = saved_stream(), saved_balancer()


def refused(load: Callable[[Any], None], state: Any) -> bool:
    try:
        load(state)
    except StateError as error:
        assert "\n" not in str(error)
        return True
    return False


@settings(max_examples=400)
@given(damaged(STREAM))
def test_any_values_in_a_streams_state_are_taken_or_refused(state: Any):
    fresh = stream()
    before = fresh.state_dict()
    if refused(fresh.load_state_dict, state):
        assert fresh.state_dict() == before
    else:
        assert fresh.position == state["position"]


@settings(max_examples=400)
@given(damaged(BALANCER))
def test_any_values_in_a_balancers_state_are_taken_or_refused(state: Any):
    fresh = balancer()
    if not refused(fresh.load_state_dict, state):
        assert fresh.step == state["step"]
        assert abs(fresh.probabilities.sum() - 1) < 1e-6
        fresh.advance()


@settings(max_examples=30)
@given(st.data())
def test_any_bytes_of_a_score_shard_are_scores_or_a_notice(
    scores: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder: Path = tmp_path_factory.mktemp("damaged")
    for path in scores.iterdir():
        (folder / path.name).write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    said: list[str] = []
    found, expected = score(folder, said.append), score(scores, said.append)
    np.testing.assert_allclose(found.loss, expected.loss, atol=1e-6)
    assert not any("\n" in line for line in said)


@settings(max_examples=60)
@given(st.data())
def test_any_bytes_of_a_trainers_state_are_passed_over_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder: Path = tmp_path_factory.mktemp("run")
    (folder / "checkpoint-2").mkdir()
    text = json.dumps({"global_step": 2, "stateful_callbacks": {"hbo": {}}}).encode()
    for name in ("trainer_state.json", "hbo_state.json"):
        (folder / "checkpoint-2" / name).write_bytes(data.draw(damaged_bytes(text)))
    found, damage = newest_checkpoint(folder)
    assert found is None
    assert len(damage) == 1


def test_a_score_shard_of_endless_depth_is_scored_again(scores: Path, tmp_path: Path):
    for path in scores.iterdir():
        (tmp_path / path.name).write_bytes(b"[" * 100_000)
    said: list[str] = []
    score(tmp_path, said.append)
    assert len(said) == len(list(scores.iterdir()))


def test_a_trainers_state_of_endless_depth_is_passed_over(tmp_path: Path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2/trainer_state.json").write_bytes(b"[" * 100_000)
    found, damage = newest_checkpoint(tmp_path)
    assert found is None
    assert len(damage) == 1
