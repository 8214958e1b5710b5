"""Policies x cuts x loaders x kills x worlds: the same run, compared step by step, to the bit."""

from functools import cache, partial
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbo.policies import POLICIES, make_policy
from hbo.runlog import read_log
from tests.exact.world import (
    LIMITS,
    MIXTURE,
    STEPS,
    Cut,
    Life,
    ids_of,
    laws_of,
    train,
)

WHOLE = Life(Cut(1, 8, 1))
CUTS = [Cut(1, 8, 1), Cut(2, 4, 1), Cut(4, 2, 1), Cut(1, 1, 8), Cut(2, 2, 2)]
LOADERS = [(0, None), (2, 1), (4, None)]
FAST = {"inner_steps": 10, "actor_learning_rate": 0.1}
SETTINGS = {
    "static": {"weights": [1, 2, 3]},
    "schedule": {"points": [(0, [3, 1, 1]), (8, [1, 3, 1]), (16, [1, 1, 3])]},
    "hbo": {"local_interval": 8},
    **dict.fromkeys(("hbo-paper", "multidds", "multiuat", "mos", "mos-plus"), FAST),
    # Its prior is fitted in some ten thousand steps, at every start.
    "hbo-released": {
        "inner_steps": 10,
        "actor_learning_rate": 0.1,
        "ema_alpha": 0.5,
        "prior_fit": False,
    },
}
ADAPTIVE = ("hbo", "hbo-paper", "hbo-released")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The log of a run of ``hbo-paper``, which also updates before its first step."""
    path = tmp_path_factory.mktemp("recorded") / "run.jsonl"
    train(maker("hbo-paper"), WHOLE, log=path)
    return path


def maker(name, recorded=None):
    fields = {"run": recorded} if name == "replay" else SETTINGS.get(name, {})
    return partial(make_policy, name, fields, update_interval=4)


@pytest.fixture(scope="module")
def reference(recorded):
    """The run that every other must equal: one process, one batch a step, no workers."""

    @cache
    def run(name, limits):
        return train(maker(name, recorded), WHOLE, limits=limits)

    return run


@pytest.mark.parametrize("name", POLICIES)
def test_cuts_ranks_and_loaders_change_nothing(name, recorded, reference):
    expected = reference(name, None)
    assert len(laws_of(expected)) >= STEPS // 8
    for cut, (workers, prefetch) in product(CUTS, LOADERS):
        life = Life(cut, workers, prefetch)
        assert train(maker(name, recorded), life) == expected, life


@st.composite
def lives(draw):
    """Up to four lives, each on its own cut and loader; any may die at any time."""
    ends = sorted(draw(st.sets(st.integers(0, STEPS - 1), min_size=1, max_size=3)))
    return [
        Life(
            draw(st.sampled_from(CUTS)),
            *draw(st.sampled_from(LOADERS)),
            saved=end,
            lost=0 if end is None else draw(st.integers(0, STEPS - end)),
        )
        for end in [*ends, None]
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_kills_and_other_worlds_change_nothing(name, recorded, reference):
    @settings(max_examples=5, deadline=None)
    @given(lives(), st.sampled_from([None, LIMITS]))
    def check(lives, limits):
        assert train(maker(name, recorded), *lives, limits=limits) == reference(name, limits)

    check()


@pytest.mark.parametrize("name", ["prop", "hbo-paper"])
def test_the_log_of_a_killed_run_tells_every_update_once(name, tmp_path):
    logs = [tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"]
    train(maker(name), WHOLE, log=logs[0])
    killed = [Life(CUTS[1], 2, saved=6, lost=7), Life(CUTS[3], saved=8, lost=0)]
    train(maker(name), *killed, Life(CUTS[0], 4), log=logs[1])
    whole, resumed = map(read_log, logs)
    assert resumed == whole
    assert [event["step"] for event in whole][-6:] == [4, 8, 12, 16, 20, 24]


def test_no_example_is_lost_or_repeated_within_a_cycle(recorded):
    lives = [Life(CUTS[2], 4, saved=5, lost=3), Life(CUTS[0], 2, saved=13, lost=6), Life(CUTS[3])]
    ids = np.array(ids_of(train(maker("hbo"), *lives)))
    cells = MIXTURE.cell_of(ids)
    for cell, size in enumerate(MIXTURE.sizes.ravel()):
        mine = ids[cells == cell]
        for start in range(0, len(mine), max(size, 1)):
            cycle = mine[start : start + size]
            assert len(set(cycle)) == len(cycle)


@pytest.mark.parametrize("name", ["prop", "temp", "uni", "static"])
def test_with_fixed_shares_a_step_of_another_size_goes_on_with_the_same_stream(name):
    smaller = Life(Cut(3, 2, 1), 2)
    changed = train(maker(name), Life(CUTS[0], 2, saved=10, lost=4), smaller)
    expected = ids_of(train(maker(name), WHOLE))
    assert ids_of(changed) == expected[: 10 * 8 + 14 * 6]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_what_a_model_makes_of_a_cut_reaches_adaptive_policies_and_replay_undoes_it(name, tmp_path):
    """Losses that differ a little by cut, as those of real models do."""
    run = partial(train, drift=1e-2)
    log = tmp_path / "run.jsonl"
    first = run(maker(name), Life(CUTS[0], 2), log=log, limits=LIMITS)
    for cut in CUTS[1:]:
        own = run(maker(name), Life(cut, 4), limits=LIMITS)
        assert laws_of(own) != laws_of(first)
        lives = Life(cut, 4), Life(cut, 4, saved=9, lost=5)
        for again in (lives[:1], (lives[1], Life(CUTS[0], 2))):
            replayed = run(maker("replay", log), *again, limits=LIMITS)
            assert laws_of(replayed) == laws_of(first)
            assert ids_of(replayed) == ids_of(first)
            assert replayed["stream_sha256"] == first["stream_sha256"]
