"""The ring: lag, limits, units, exact resume; rewards that do not depend on cuts or ranks."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbo.balancer import Balancer
from hbo.errors import ConfigError, StateError
from hbo.identity import OtherRunError
from hbo.mixture import Mixture
from hbo.observations import loss_signals
from hbo.policies import make_policy
from hbo.sampling.limits import Limits
from hbo.sampling.stream import ExhaustedError
from hbo.signals import Signals

MIXTURE = Mixture(("big", "small", "tiny"), np.array([[40, 40], [9, 8], [2, 1]]), "data")


@dataclass(frozen=True)
class Pendulum:
    """All weight on one subset, another at each update: every lag is visible in the draws."""

    interval: int = 3
    needs: frozenset[str] = frozenset()
    update_at_start: ClassVar[bool] = False

    def needs_at(self, step: int) -> frozenset[str]:
        return self.needs

    def init(self, sizes: np.ndarray, weights: Any = None) -> dict[str, Any]:
        return {"sizes": sizes.tolist(), "at": 0}

    def probabilities(self, state: dict[str, Any]) -> np.ndarray:
        law = np.zeros((len(state["sizes"]), len(state["sizes"][0])))
        law[state["at"]] = np.array(state["sizes"][state["at"]]) > 0
        return law / law.sum()

    def update(self, state: dict[str, Any], signals: Signals) -> dict[str, Any]:
        return {**state, "at": (state["at"] + 1) % len(state["sizes"])}

    def explain(self, state: dict[str, Any]) -> dict[str, Any]:
        return {}


def run(balancer: Balancer, steps: int, *, ahead: int = 0) -> list[list[int]]:
    """Train for some steps on a toy loss, with a loader that is ``ahead`` steps in front."""
    loader = balancer.look_ahead(balancer.step * balancer.draws_per_step, 10_000)
    drawn = [next(loader).tolist() for _ in range(ahead)]
    for _ in range(steps):
        drawn.append(next(loader).tolist())
        ids = balancer.advance()
        loss = 1.0 + np.sin(ids) / (1 + balancer.step)
        norms = 1.0 + np.cos(ids)
        balancer.observe(ids, loss_signals(loss, np.full(len(ids), 1.5)) | {"gradient_norm": norms})
        if balancer.due:
            balancer.update()
    return drawn


def hbo(**fields: Any) -> Balancer:
    policy = make_policy("hbo", update_interval=4, **fields)
    return Balancer(MIXTURE, policy, seed=3, draws_per_step=5, lag=2)


def test_new_probabilities_start_lag_steps_after_the_update() -> None:
    balancer = Balancer(MIXTURE, Pendulum(), seed=0, draws_per_step=4, lag=2)
    drawn = [MIXTURE.subset_of(np.array(ids)).tolist() for ids in run(balancer, 12)]
    of_step = [set(subsets) for subsets in drawn]
    # Updates after steps 3, 6, 9; two more steps of the old law each time.
    assert of_step == [{0}] * 5 + [{1}] * 3 + [{2}] * 3 + [{0}]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_loader_within_the_lag_changes_nothing(ahead: int) -> None:
    reference = run(hbo(), 30)
    assert run(hbo(), 30, ahead=ahead)[:30] == reference


def test_a_loader_beyond_the_lag_is_stopped() -> None:
    with pytest.raises(StateError, match="lag = 2"):
        run(hbo(), 30, ahead=4)


def test_a_second_look_ahead_leaves_the_first_alone() -> None:
    balancer, reference = hbo(), hbo()
    loader, other = (b.look_ahead(0, 10_000) for b in (balancer, reference))
    for step in range(30):
        assert next(loader).tolist() == next(other).tolist()
        for ring in (balancer, reference):
            ids = ring.advance()
            ring.observe(ids, loss_signals(1.0 + np.sin(ids), np.full(len(ids), 1.5)))
            if ring.due:
                ring.update()
        if step % 3 == 0:  # someone peeks, and keeps what they peeked with
            peek = balancer.look_ahead(balancer.step * 5, 100)
            next(peek)
            next(peek)


def test_steps_that_max_passes_cannot_fill_are_refused() -> None:
    limits = Limits(np.zeros(3), np.ones(3), np.array([1.0, 1.0, 1.0]))
    balancer = Balancer(MIXTURE, make_policy("prop"), seed=1, draws_per_step=10, limits=limits)
    balancer.check_draws_left(10)
    with pytest.raises(ConfigError, match="leave 100; train for at most 10 steps"):
        balancer.check_draws_left(11)
    ahead = balancer.look_ahead(0, 1000)
    assert sum(len(next(ahead)) for _ in range(10)) == 100
    with pytest.raises(ExhaustedError, match="max_passes"):
        next(ahead)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["prop", "hbo", "hbo-paper", "hbo-released"]), st.integers(0, 24))
def test_a_resume_anywhere_is_no_resume(name: str, cut: int) -> None:
    def make() -> Balancer:
        return Balancer(
            MIXTURE, make_policy(name, update_interval=4), seed=3, draws_per_step=5, lag=2
        )

    whole, first, second = make(), make(), make()
    run(whole, 25)
    run(first, cut)
    first.observations.gather()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    run(second, 25 - cut)
    for balancer in (whole, second):
        balancer.observations.gather()
    assert second.state_dict() == whole.state_dict()
    assert second.stream_sha256 == whole.stream_sha256


def test_ranks_and_cuts_do_not_change_a_bit() -> None:
    one, rank_a, rank_b = hbo(), hbo(), hbo()
    run(one, 3)
    for _ in range(3):
        ids = rank_a.advance()
        rank_b.advance()
        loss = 1.0 + np.sin(ids) / (1 + rank_a.step)
        signals = loss_signals(loss, np.full(5, 1.5)) | {"gradient_norm": 1.0 + np.cos(ids)}
        for balancer, part in ((rank_a, slice(0, None, 2)), (rank_b, slice(1, None, 2))):
            balancer.observe(ids[part], {name: value[part] for name, value in signals.items()})
    sent: list[np.ndarray] = []
    rank_b.observations.gather(lambda array: sent.append(array.copy()) or array)
    rank_a.observations.gather(lambda array: array + sent[0])
    one.observations.gather()
    assert rank_a.observations.state_dict() == one.observations.state_dict()


def test_stream_hash_is_that_of_the_consumed_ids() -> None:
    balancer = hbo()
    consumed = np.concatenate([balancer.advance() for _ in range(7)])
    expected = hashlib.sha256(consumed.astype("<i8").tobytes()).hexdigest()
    assert balancer.stream_sha256 == expected
    assert balancer.draws.sum() == 35


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"lag": 3}, "lag"),
        ({"policy": make_policy("hbo", update_interval=5)}, "settings of its policy"),
        ({"mixture": Mixture(("big", "small", "odd"), MIXTURE.sizes, "data")}, "subsets"),
        ({"mixture": Mixture(MIXTURE.names, MIXTURE.sizes, "new")}, "training examples"),
        ({"mixture": Mixture(MIXTURE.names, MIXTURE.sizes[:, ::-1], "data")}, "groups"),
        ({"policy": make_policy("prop")}, r"policy \('HBO', here Prior\)"),
        ({"weights": np.array([1.0, 1.0, 1.0]) / 3}, "weights"),
        (
            {"limits": Limits(np.array([0, 0, 0.2]), np.ones(3), np.full(3, np.inf))},
            "min_share",
        ),
        ({"limits": Limits(np.zeros(3), np.ones(3), np.array([3, 3, 3.0]))}, "max_passes"),
    ],
)
def test_another_runs_state_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    settings: dict[str, Any] = {
        "mixture": MIXTURE,
        "policy": make_policy("hbo", update_interval=4),
        "seed": 3,
        "draws_per_step": 5,
        "lag": 2,
    }
    saved = hbo().state_dict()
    Balancer(**settings).load_state_dict(saved)
    with pytest.raises(OtherRunError, match=rf"written with .*{named}.*balance.resume to 'anew'"):
        Balancer(**(settings | change)).load_state_dict(saved)


def test_caps_are_strict_and_floors_hold() -> None:
    limits = Limits(
        min_share=np.array([0.0, 0.0, 0.2]),
        max_share=np.array([0.5, 1.0, 1.0]),
        max_passes=np.array([np.inf, np.inf, 4.0]),
    )
    balancer = Balancer(MIXTURE, make_policy("prop"), seed=1, draws_per_step=10, limits=limits)
    shares = balancer.probabilities.sum(axis=1)
    assert np.isclose(shares[0], 0.5) and np.isclose(shares[2], 0.2)
    for _ in range(20):
        balancer.advance()
    assert balancer.draws.sum(axis=1)[2] == 12  # 4 passes over 3 examples, and not one more
    assert balancer.probabilities.sum(axis=1)[2] == 0
    assert np.isclose(balancer.probabilities.sum(), 1)
    assert balancer.update().after.sum(axis=1)[2] == 0


def test_tokens_as_unit_make_shares_mean_tokens() -> None:
    mixture = Mixture(
        ("short", "long"), np.array([[100], [100]]), mean_tokens=np.array([[10.0], [30.0]])
    )
    balancer = Balancer(mixture, make_policy("uni"), seed=0, draws_per_step=8, unit="tokens")
    draws = balancer.probabilities.ravel()
    assert np.allclose(draws * [10, 30] / (draws * [10, 30]).sum(), [0.5, 0.5])
    with pytest.raises(ConfigError, match="does not know its tokens"):
        Balancer(MIXTURE, make_policy("uni"), seed=0, draws_per_step=8, unit="tokens")


def test_rate_zero_is_the_prior() -> None:
    frozen, prior = (
        hbo(rate=0.0),
        Balancer(MIXTURE, make_policy("prop"), seed=3, draws_per_step=5, lag=2),
    )
    assert run(frozen, 20) == run(prior, 20)


def test_another_schema_is_another_run() -> None:
    saved = {**hbo().state_dict(), "schema": 1}
    with pytest.raises(OtherRunError, match="has schema 1, this version reads"):
        hbo().load_state_dict(saved)
