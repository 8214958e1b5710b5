"""A recorded run again: law by law to the bit, or its average."""

import dataclasses
import json

import numpy as np
import pytest

from hbo.balancer import Balancer
from hbo.errors import ConfigError, DataError
from hbo.identity import OtherRunError
from hbo.mixture import Mixture
from hbo.policies import check_recording, make_policy
from hbo.sampling.limits import Limits
from tests.policies.recordings import write_recording
from tests.policies.signal_cases import random_signals

SIZES = np.array([[8, 8], [3, 1], [2, 2]])
LAWS = np.random.default_rng(0).dirichlet(np.ones(6), size=4).reshape(4, 3, 2)


@pytest.fixture
def log(tmp_path):
    return write_recording(tmp_path / "run.jsonl", LAWS, steps=(4, 6, 12), lag=2, last_step=20)


def followed(policy, steps, sizes=SIZES):
    state = policy.init(sizes)
    laws = [policy.probabilities(state)]
    for step in steps:
        state = json.loads(json.dumps(policy.update(state, random_signals(sizes, 0, step=step))))
        laws.append(policy.probabilities(state))
    return np.array(laws)


def test_a_trajectory_is_the_recorded_one_to_the_bit_at_every_recorded_step(log):
    policy = make_policy("replay", run=log)
    assert policy.interval == 2
    assert not policy.update_at_start
    check_recording(policy, ("subset-0", "subset-1", "subset-2"))
    seen = followed(policy, range(2, 16, 2))
    assert (seen == LAWS[[0, 0, 1, 2, 2, 2, 3, 3]]).all()


def test_an_update_before_the_first_step_is_replayed_too(tmp_path):
    policy = make_policy("replay", run=write_recording(tmp_path / "run.jsonl", LAWS, (0, 5, 15)))
    assert policy.interval == 5
    assert policy.update_at_start
    assert (followed(policy, (0, 5, 10, 15)) == LAWS[[0, 1, 2, 2, 3]]).all()
    alone = make_policy("replay", run=write_recording(tmp_path / "run.jsonl", LAWS[:2], (0,)))
    assert (alone.interval, alone.update_at_start) == (200, True)


def test_the_average_weighs_each_law_by_the_draws_it_was_in_force_for(log):
    policy = make_policy("replay", run=log, mode="average", update_interval=7)
    assert (policy.interval, policy.update_at_start) == (7, False)
    # Laws begin 2 steps after updates at 4, 6 and 12; the run ends after step 20.
    expected = np.tensordot([6, 2, 6, 6], LAWS, 1) / 20
    assert followed(policy, (7, 14)) == pytest.approx(np.array([expected] * 3), abs=1e-15)


def test_an_average_ends_at_the_last_draw_that_the_log_shows(tmp_path):
    path = tmp_path / "run.jsonl"
    for last_step, weights in ((None, [6, 2, 6, 0]), (7, [6, 1, 0, 0])):
        write_recording(path, LAWS, (4, 6, 12), lag=2, last_step=last_step)
        law = followed(make_policy("replay", run=path, mode="average"), ())[0]
        assert law == pytest.approx(np.tensordot(weights, LAWS, 1) / sum(weights), abs=1e-15)


def test_a_run_is_named_by_its_directory_or_its_log(log):
    one = make_policy("replay", run=str(log.parent) + "/")
    other = make_policy("replay", run=str(log))
    assert one.run == str(log.parent)
    assert one.recording == other.recording != ""
    assert (followed(one, (4,)) == followed(other, (4,))).all()


def ring(policy, **changes):
    mixture = Mixture(("a", "b", "c"), SIZES, "data")
    return Balancer(mixture, policy, **{"seed": 1, "draws_per_step": 4, "lag": 2} | changes)


def test_a_resume_goes_on_with_the_same_recording_only(log, tmp_path):
    saved = json.loads(json.dumps(ring(make_policy("replay", run=log)).state_dict()))
    ring(make_policy("replay", run=log)).load_state_dict(saved)
    write_recording(log, LAWS[[0, 1, 3, 2]], steps=(4, 6, 12))
    with pytest.raises(OtherRunError, match=r"other settings of its policy \(recording '.*here '"):
        ring(make_policy("replay", run=log)).load_state_dict(saved)


def test_what_does_not_change_the_laws_does_not_change_the_recording(log):
    before = make_policy("replay", run=log)
    with log.open("a") as file:
        file.write('{"event": "evaluation", "step": 20}\n{"event": "step", "draws": 900}\n')
    assert make_policy("replay", run=log) == before
    with pytest.raises(ConfigError, match="unknown policy field 'recording'"):
        make_policy("replay", run=log, recording="mine")
    assert dataclasses.replace(before, run=str(log.parent)).recording == before.recording


def test_a_run_that_is_not_there_is_refused_when_the_policy_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"run is 'runs/no': there is no such file or directory"):
        make_policy("replay", run="runs/no")
    with pytest.raises(ConfigError, match=r"run is '\.': there is no run.jsonl in this directory"):
        make_policy("replay", run=".")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_policy("replay", run="a\0b")
    for value in (3, "", True, ["runs/a"]):
        with pytest.raises(ConfigError, match=r"run is .*; allowed: the directory of a run"):
            make_policy("replay", run=value)
    with pytest.raises(ConfigError, match=r"mode is 'mean'.*allowed: trajectory, average"):
        make_policy("replay", run=".", mode="mean")
    with pytest.raises(ConfigError, match=r"policy replay has no run; give balance\.run"):
        make_policy("replay").init(SIZES)


def test_another_mixture_is_refused_with_both_shapes(log):
    policy = make_policy("replay", run=log)
    with pytest.raises(ConfigError, match=r"3 subsets of 2 groups; this mixture has 2 of 2"):
        policy.init(SIZES[:2])
    with pytest.raises(ConfigError, match=r"this mixture has 3 of 1"):
        policy.init(SIZES[:, :1])
    with pytest.raises(ConfigError, match="drew from a group that is empty here"):
        policy.init(np.array([[8, 8], [3, 0], [2, 2]]))


GOOD = {"before": {"a": [0.5], "b": [0.5]}, "after": {"a": [0.25], "b": [0.75]}}


def update(step=4, start=40, proposed=GOOD):
    return {"event": "update", "step": step, "effective_draw": start, "proposed": proposed}


def after(**tables):
    return {"before": GOOD["before"], "after": tables}


ON = {"before": GOOD["after"], "after": GOOD["before"]}

BAD_LOGS = {
    "empty": ([], "no update of probabilities"),
    "a static run": ([{"event": "step", "step": 8, "draws": 8}], "name that"),
    "of an older version": ([update(proposed=None)], "older version wrote this log; `hbo export"),
    "no step": ([update(step=None)], "without its step"),
    "a step that is none": ([update(step=True)], "without its step"),
    "no draw": ([update(start=0)], "without its step or effective_draw"),
    "no table": ([update(proposed=3)], "step 4 is damaged"),
    "half": ([update(proposed={"before": GOOD["before"]})], "step 4 is damaged"),
    "a list": ([update(proposed=after() | {"after": [[1.0]]})], "step 4 is damaged"),
    "lists": ([update(proposed={"before": [5], "after": [0]})], "step 4 is damaged"),
    "no rows": ([update(proposed=after(a=0.25, b=0.75))], "step 4 is damaged"),
    "ragged rows": ([update(proposed=after(a=[0.5, 0.25], b=[0.25]))], "step 4 is damaged"),
    "text": ([update(proposed=after(a=["x"], b=[1.0]))], "step 4 is damaged"),
    "nothing": ([update(proposed=after(a=[None], b=[1.0]))], "step 4 is damaged"),
    "negative": ([update(proposed=after(a=[-0.5], b=[1.5]))], "step 4 is damaged"),
    "huge": ([update(proposed=after(a=[10**400], b=[1.0]))], "step 4 is damaged"),
    "near overflow": ([update(proposed=after(a=[1.7e308], b=[1.7e308]))], "step 4 is damaged"),
    "no sum of 1": ([update(proposed=after(a=[0.25], b=[0.25]))], "step 4 is damaged"),
    "other names": ([update(proposed=after(b=[0.25], a=[0.75]))], "step 4 is damaged"),
    "no groups": (
        [update(proposed={key: {"a": 0.5, "b": 0.5} for key in GOOD})],
        "step 4 is damaged",
    ),
    "other groups": ([update(proposed=after(a=[0.5, 0], b=[0.5, 0]))], "step 4 is damaged"),
    "renamed": (
        [update(), update(8, 80, {key: {"c": [0.25], "b": [0.75]} for key in GOOD})],
        "steps 4 and 8 do not follow",
    ),
    "one missing": ([update(), update(step=8, start=80)], "steps 4 and 8 do not follow"),
    "twice": ([update(), update(proposed=ON)], "steps 4 and 4 do not follow"),
    "draws backwards": ([update(), update(8, 20, ON)], "steps 4 and 8 do not follow"),
}


@pytest.mark.parametrize(("events", "message"), BAD_LOGS.values(), ids=BAD_LOGS)
def test_a_log_that_cannot_be_replayed_is_refused_by_name(tmp_path, events, message):
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    with pytest.raises(DataError, match=message) as caught:
        make_policy("replay", run=tmp_path)
    assert caught.value.where == str(path)


def test_limits_and_units_are_applied_as_they_were_when_it_was_recorded(tmp_path):
    """What is replayed is what the policy asked for: floors and caps come on top of it, once."""
    sizes = np.array([[30, 30], [9, 8], [4, 3]])
    mixture = Mixture(("a", "b", "c"), sizes, "data", np.full((3, 2), 5.0) + np.eye(3)[:, :2])
    limits = Limits(np.array([0.3, 0.0, 0.2]), np.ones(3), np.array([np.inf, 3.0, np.inf]))
    common = {"seed": 3, "draws_per_step": 6, "lag": 1, "limits": limits, "unit": "tokens"}
    given = make_policy("schedule", points=[(0, [1, 5, 1]), (4, [1, 1, 0]), (8, [0, 9, 1])])
    laws, streams = [], []
    for number in range(2):
        policy = make_policy("replay", run=tmp_path) if number else given
        balancer = Balancer(mixture, policy, **common)
        updates = []
        for _ in range(20):
            balancer.advance()
            if balancer.due:
                updates.append(balancer.update())
        asked = [updates[0].proposed[0], *(update.proposed[1] for update in updates)]
        if not number:
            write_recording(tmp_path / "run.jsonl", asked, [u.step for u in updates], per_step=6)
        laws.append([update.after for update in updates])
        streams.append(balancer.stream_sha256)
    assert np.array_equal(*laws)
    assert streams[0] == streams[1]


def test_another_order_of_subsets_is_refused(log):
    check_recording(make_policy("prop"), ("any", "names"))
    with pytest.raises(ConfigError, match=r"another order \(subset-0, subset-1, subset-2\)"):
        check_recording(make_policy("replay", run=log), ("subset-1", "subset-0", "subset-2"))
