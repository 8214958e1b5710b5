"""Several policies on the same toy learners: how far each ends from the best fixed mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.errors import ConfigError
from hbo.policies import POLICIES, make_policy
from hbo.simulate.loop import UPDATES, simulate


@dataclass(frozen=True)
class Standing:
    """How one policy did, over seeds.

    Args:
        policy: Its name.
        macro: Mean final macro loss, nats per token.
        regret: Mean of the final macro loss above that of each seed's best fixed mixture.
        regret_error: Standard error of that mean; NaN for one seed.
        worst: Mean final loss of the worst subset.
        passes: Most passes over a subset, mean over seeds.
        seconds: Wall time of all seeds.
    """

    policy: str
    macro: float
    regret: float
    regret_error: float
    worst: float
    passes: float
    seconds: float


def runnable() -> list[str]:
    """Names of the policies that run without settings of the user's: not ``static``, for one.

    Example:
        >>> "hbo" in runnable(), "replay" in runnable()
        (True, False)
    """
    found = []
    for name in POLICIES:
        try:
            make_policy(name).init(np.ones((2, 1), dtype=np.int64))
        except ConfigError:
            continue
        found.append(name)
    return found


def side_by_side(
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    fields: Mapping[str, Any] | None = None,
    steps: int = 600,
    **settings: Any,
) -> list[Standing]:
    """Run each policy on the learner of each seed; the least regret comes first.

    Args:
        policies: Names.
        seeds: Of learners, noise and draws; the same for every policy.
        fields: Fields of every policy over its defaults; 30 updates in a run unless given.
        steps: Optimiser steps.
        settings: As for ``simulate``.

    Raises:
        ConfigError: A policy or a field is unknown, or a number is out of range.

    Example:
        >>> standings = side_by_side(["prop", "hbo"], [0, 1], steps=200, num_subsets=4)
        >>> [standing.policy for standing in standings]
        ['hbo', 'prop']
    """
    given = {"update_interval": max(1, steps // UPDATES), **(fields or {})}
    made = {name: make_policy(name, given) for name in policies}  # all, before the first runs
    standings = []
    for name, policy in made.items():
        runs = [simulate(policy, steps=steps, seed=seed, **settings) for seed in seeds]
        regrets = np.array([run.regret for run in runs])
        error = regrets.std(ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.nan
        standings.append(
            Standing(
                policy=name,
                macro=float(np.mean([run.macro[-1] for run in runs])),
                regret=float(regrets.mean()),
                regret_error=float(error),
                worst=float(np.mean([run.worst[1] for run in runs])),
                passes=float(np.mean([run.passes.max() for run in runs])),
                seconds=sum(run.seconds for run in runs),
            )
        )
    return sorted(standings, key=lambda standing: standing.regret)
