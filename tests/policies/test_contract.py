"""What every policy of the table promises."""

import json

import numpy as np
import pytest

from hbo.errors import ConfigError
from hbo.policies import POLICIES, make_policy
from hbo.signals import CELL_SIGNALS, EXAMPLE_SIGNALS, WHOLE_SIGNALS
from tests.policies.recordings import write_recording
from tests.policies.signal_cases import WILD, every_signal, random_signals

# Nearly equal, because hbo-released fits its prior in some thousand steps a unit of log-ratio.
ORDINARY = np.array([[5, 5, 5], [4, 4, 3], [5, 4, 4], [4, 4, 4]])
SIZES = {
    "ordinary": ORDINARY,
    "one subset": np.array([[4, 3, 3]]),
    "one group": np.array([[5], [3], [4]]),
    "one cell": np.array([[7]]),
    "empty cells": np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0]]),
    "many": np.full((300, 4), 25) + np.arange(300)[:, None] % 3,
}


@pytest.fixture
def made(tmp_path):
    """Make a policy for some sizes, with the fields that it cannot do without.

    ``order`` permutes what belongs to subsets.
    """

    def make(name, sizes, order=None, **given):
        order = range(len(sizes)) if order is None else order
        shares, flat = [1.0 + index for index in order], [1.0 for _ in order]
        laws = [table / table.sum() for table in (sizes, sizes * np.array(shares)[:, None], sizes)]
        required = {
            "static": {"weights": shares},
            "schedule": {
                "points": [{"step": 0, "weights": shares}, {"step": 20, "weights": flat}],
            },
            "replay": {"run": tmp_path / "run.jsonl"},
        }
        write_recording(tmp_path / "run.jsonl", laws, steps=(20, 40))
        return make_policy(name, update_interval=10, **required.get(name, {}), **given)

    return make


def is_a_law(probabilities, sizes):
    assert probabilities.shape == sizes.shape
    assert probabilities.dtype == np.float64
    assert (probabilities >= 0).all()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-9)
    assert (probabilities[sizes == 0] == 0).all()
    return True


def trajectory(policy, sizes, updates=4, *, through_json_at=None):
    state = policy.init(sizes)
    laws = [policy.probabilities(state)]
    for update in range(1, updates + 1):
        if update == through_json_at:
            state = json.loads(json.dumps(state, allow_nan=False))
        step = update * policy.interval
        state = policy.update(state, random_signals(sizes, seed=update, step=step))
        laws.append(policy.probabilities(state))
    return laws


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", POLICIES)
def test_every_law_is_one(made, name, sizes):
    policy = made(name, sizes)
    assert all(is_a_law(law, sizes) for law in trajectory(policy, sizes, updates=3))


@pytest.mark.parametrize("name", POLICIES)
def test_weights_given_with_the_datasets_are_accepted(made, name):
    policy = made(name, ORDINARY)
    state = policy.init(ORDINARY, np.array([0.1, 0.2, 0.3, 0.4]))
    assert is_a_law(policy.probabilities(state), ORDINARY)


@pytest.mark.parametrize("name", POLICIES)
def test_needs_are_known_signals_and_intervals_count_steps(made, name):
    policy = made(name, ORDINARY)
    assert policy.needs <= EXAMPLE_SIGNALS | WHOLE_SIGNALS | CELL_SIGNALS
    assert policy.needs_at(0) == policy.needs
    assert policy.needs_at(policy.interval) <= policy.needs
    assert policy.interval in (10, 20)


@pytest.mark.parametrize("name", POLICIES)
def test_the_same_signals_give_the_same_laws(made, name):
    one = trajectory(made(name, ORDINARY), ORDINARY)
    other = trajectory(made(name, ORDINARY), ORDINARY)
    assert all((a == b).all() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_a_state_that_went_through_json_goes_on_to_the_bit(made, name, cut):
    sizes = SIZES["empty cells"]
    straight = trajectory(made(name, sizes), sizes)
    resumed = trajectory(made(name, sizes), sizes, through_json_at=cut)
    assert all((a == b).all() for a, b in zip(straight, resumed, strict=True))


@pytest.mark.parametrize("name", POLICIES)
def test_update_leaves_the_state_it_was_given_alone(made, name):
    policy = made(name, ORDINARY)
    state = policy.update(policy.init(ORDINARY), random_signals(ORDINARY, 0, step=10))
    before = json.dumps(state)
    policy.update(state, random_signals(ORDINARY, 1, step=20))
    assert json.dumps(state) == before


@pytest.mark.parametrize("name", POLICIES)
def test_the_order_of_the_subsets_does_not_matter(made, name):
    order = np.array([2, 0, 3, 1])
    values = random_signals(ORDINARY, 3).now["loss"].mean
    laws = []
    for rows in (np.arange(4), order):
        policy = made(name, ORDINARY[rows], rows)
        state = policy.init(ORDINARY[rows])
        for step in (20, 40):
            state = policy.update(state, every_signal(ORDINARY[rows], values[rows], step=step))
        laws.append(policy.probabilities(state))
    assert laws[1] == pytest.approx(laws[0][order], abs=1e-12)


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("name", POLICIES)
def test_wild_signals_leave_a_law_a_plain_state_and_the_way_back(made, name, wild):
    for sizes in (ORDINARY, SIZES["empty cells"], SIZES["one cell"]):
        policy = made(name, sizes)
        state = policy.init(sizes)
        with np.errstate(all="ignore"):  # the cases themselves overflow while they are built
            signals = every_signal(sizes, WILD[wild](sizes), step=10)
        for seed in range(2):
            state = policy.update(state, signals)
            assert is_a_law(policy.probabilities(state), sizes)
            state = json.loads(json.dumps(state, allow_nan=False))
            state = policy.update(state, random_signals(sizes, seed, step=20))
            assert is_a_law(policy.probabilities(state), sizes)


@pytest.mark.parametrize("name", POLICIES)
def test_explanations_are_plain_and_have_the_keys_of_the_run_log(made, name):
    policy = made(name, ORDINARY)
    state = policy.init(ORDINARY)
    assert json.dumps(policy.explain(state)) == "{}"
    said = policy.explain(policy.update(state, random_signals(ORDINARY, 0, step=10)))
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert set(said) <= {"global", "local", "notes"}
    for level in set(said) & {"global", "local"}:
        assert {"rewards", "errors"} <= set(said[level])
        assert len(said[level]["rewards"]) == len(said[level]["errors"]) == len(ORDINARY)
    assert all(len(note) == 2 for note in said.get("notes", []))


@pytest.mark.parametrize("name", POLICIES)
def test_unknown_fields_are_refused_with_the_nearest_and_the_allowed_ones(name):
    with pytest.raises(ConfigError, match=r"update_intervall.*nearest: update_interval; allowed:"):
        make_policy(name, update_intervall=5)
    with pytest.raises(ConfigError, match="unknown policy field 'zzz'; allowed:"):
        POLICIES[name](zzz=5)


@pytest.mark.parametrize("value", [0, -1, 1.5, "10", True, None])
@pytest.mark.parametrize("name", POLICIES)
def test_a_bad_interval_is_refused(name, value):
    with pytest.raises(ConfigError, match=r"update_interval is .*; allowed: a whole number from 1"):
        make_policy(name, update_interval=value)


@pytest.mark.parametrize("name", POLICIES)
def test_the_shared_key_is_accepted_by_all_at_its_default(made, name):
    made(name, ORDINARY, prior_temperature=1.0)
    with pytest.raises(ConfigError, match="prior_temperature"):
        made(name, ORDINARY, prior_temperature=0)


@pytest.mark.parametrize("name", POLICIES)
def test_listed_fields_are_the_ones_that_can_be_given(name):
    listed = POLICIES[name].fields
    policy = POLICIES[name](**listed)
    assert policy == POLICIES[name]()


def test_an_unknown_policy_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'hbo-papr'; nearest: hbo-paper; allowed: prop, temp"):
        make_policy("hbo-papr")
