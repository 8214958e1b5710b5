"""HBO: a Global Actor over subsets, and a Local Actor over the difficulty groups of each.

Every choice that the paper, its released code and we make differently is one field of ``HBO``.
Numbers like "5.1(6)" point to the table "paper against code" of ``docs/paper_map.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hbo.mixture import FloatArray, IntArray
from hbo.policies import fields
from hbo.policies.actor import Actor, BoolArray, closed_form_step, fit_to_prior, reinforce_step
from hbo.policies.base import PolicyState
from hbo.policies.bounds import within_bounds
from hbo.policies.cells import from_plain, joint, to_plain, two_level_prior
from hbo.policies.treatment import (
    Note,
    clip_to_median,
    mean_of_known,
    repeated,
    shrink,
    smooth,
    smooth_errors,
    usable,
)
from hbo.rewards import GLOBAL_REWARDS, LOCAL_REWARDS
from hbo.signals import Signals

LEVELS = ("global", "local")
STEP_RULES = ("closed-form", "adam", "sgd")


@dataclass(frozen=True)
class HBO:
    """Hierarchical Balancing Optimization.

    p(i, j) = p_global(i) p_local^i(j). At each update every actor is paid its rewards R, and moves
    towards R / sum R (``actor.py``: the fixed point of the paper's REINFORCE step too). From what
    was measured to what is paid: unusable values out, normalise (local), clip, smooth over updates,
    shrink by noise, raise to a power, the mean of the known for the unknown. An actor that knows
    fewer than two of its arms' rewards stays where it is.

    The defaults are ours, chosen by measurement (``docs/log.md``): the Global Actor is paid the
    square root of the held-out loss. Where losses fall as a power of the draws, what one more draw
    gains grows with the loss; the root allows for losses that do not fall. Pay falls with the
    passes over a subset, so that a tiny one is not repeated without end. They are also made to be
    safe: one noisy reward or a missing signal cannot carry the mixture away.
    ``hbo-paper`` and ``hbo-released`` in ``POLICIES`` set the same fields to what the paper says
    and to what its code does.

    Algorithm 1 of arXiv 2505.12300.

    Example:
        >>> policy = HBO(update_interval=50)
        >>> policy.probabilities(policy.init(np.array([[3, 3], [1, 1]]))).round(6).tolist()
        [[0.375, 0.375], [0.125, 0.125]]
    """

    # --- when -----------------------------------------------------------------------------------
    prior_temperature: float = 1.0
    """T of the prior that the actors start from: 1 proportional, infinity uniform (Eq. 3)."""
    update_interval: int = 200
    """Optimiser steps between updates, for both levels (F_global = F_local)."""
    global_interval: int | None = None
    """F_global where it differs; 5.1(8): the code has one interval."""
    local_interval: int | None = None
    """F_local where it differs."""
    update_at_start: bool = True
    """Also update before the first step (Algorithm 1, t = 0; costs a probe). 5.1(8)."""
    # --- what is paid ---------------------------------------------------------------------------
    global_actor: bool = True
    """Off: subsets stay at the prior ("local only", Table 2)."""
    local_actor: bool = True
    """Off: groups stay at the prior ("global only", Table 2)."""
    global_reward: str = "heldout-loss"
    """Name in ``GLOBAL_REWARDS``. Eq. 7 is ``batch-gradient-norm``, the code has ``gradient-norm``;
    5.1(5)."""
    local_reward: str = "relative-perplexity"
    """Name in ``LOCAL_REWARDS``. Eq. 8 is ``relative-perplexity``."""
    normalise_local: bool = False
    """Divide local rewards by their mean over the subset's groups, as the code does; 5.1(6). Off,
    because the mean jumps when only some groups were seen, and R / sum R has no scale anyway."""
    reward_clip: float | None = 4.0
    """c: cut rewards to [median / c, median x c] of their actor, as Eq. 8 has heavy tails."""
    ema_alpha: float | None = 0.5
    """Weight of the new reward in the running one (1.6: the code has 0.9, off); ``None`` off."""
    ema_level: str = "both"
    """Rewards that are smoothed: ``both``, ``global`` (the code's option) or ``local``."""
    ema_start: float | None = None
    """Running reward before the first (the code has 1); ``None``: the first reward itself."""
    shrinkage: float = 1.0
    """Pull noisy rewards to the mean, by standard error: 0 off, 1 full empirical Bayes."""
    reward_power: float = 0.5
    """a: an actor's target is R^a / sum R^a. 1 as in the paper; below, the same order of arms with
    less at stake."""
    repeat_scale: float | None = 8.0
    """s: a subset's pay is multiplied by exp(-passes / s): what was repeated often teaches less
    (the form of arXiv 2305.16264); ``None`` off."""
    # --- how the actor moves --------------------------------------------------------------------
    step_rule: str = "closed-form"
    """``closed-form``, ``adam`` (code) or ``sgd`` (Algorithm 1 to the letter); 5.1(9)."""
    rate: float = 1.0
    """Closed form: fraction of the way to the target per update; 0 never leaves the prior."""
    prior_pull: float = 0.0
    """Closed form: share of the prior in the target. 1.7(c): the paper's actor forgets it."""
    actor_learning_rate: float = 1e-4
    """``adam``, ``sgd``: step size gamma of the actors (App. A)."""
    inner_steps: int = 200
    """``adam``, ``sgd``: gradient steps per update with the same rewards (the code's number)."""
    local_updates_per_interval: int = 1
    """Local actor steps per update; 4 reproduces a defect of the code, 5.1(10)."""
    prior_fit: bool = False
    """Reach the global prior by Adam on squared error, whose moments remain (code); 1.7(b)."""
    # --- how far it may go ----------------------------------------------------------------------
    floor: float = 0.2
    """Least probability of an arm, as a fraction of ``floor_reference``."""
    floor_reference: str = "prior"
    """``prior`` or ``uniform`` (over the arms that exist)."""
    max_ratio: float | None = None
    """Most probability of an arm, as a multiple of its prior; ``None`` no cap."""

    def __post_init__(self) -> None:
        self._check_when()
        for name in ("global_actor", "local_actor", "normalise_local", "prior_fit"):
            fields.flag(name, getattr(self, name))
        fields.choice("global_reward", self.global_reward, GLOBAL_REWARDS)
        fields.choice("local_reward", self.local_reward, LOCAL_REWARDS)
        fields.number("reward_clip", self.reward_clip, 1.0, optional=True)
        fields.number("ema_alpha", self.ema_alpha, 0.0, 1.0, above=True, optional=True)
        fields.choice("ema_level", self.ema_level, ("both", *LEVELS))
        fields.number("ema_start", self.ema_start, 0.0, optional=True)
        fields.number("shrinkage", self.shrinkage, 0.0, 1.0)
        fields.number("reward_power", self.reward_power, 0.0)
        fields.number("repeat_scale", self.repeat_scale, 0.0, above=True, optional=True)
        fields.choice("step_rule", self.step_rule, STEP_RULES)
        fields.number("rate", self.rate, 0.0, 1.0)
        fields.number("prior_pull", self.prior_pull, 0.0, 1.0)
        fields.number("actor_learning_rate", self.actor_learning_rate, 0.0)
        fields.whole_number("inner_steps", self.inner_steps, 0)
        fields.whole_number("local_updates_per_interval", self.local_updates_per_interval, 1)
        fields.number("floor", self.floor, 0.0, 1.0)
        fields.choice("floor_reference", self.floor_reference, ("prior", "uniform"))
        fields.number("max_ratio", self.max_ratio, 1.0, optional=True)

    def _check_when(self) -> None:
        fields.number("prior_temperature", self.prior_temperature, 0.0, above=True, finite=False)
        fields.whole_number("update_interval", self.update_interval, 1)
        fields.whole_number("global_interval", self.global_interval, 1, optional=True)
        fields.whole_number("local_interval", self.local_interval, 1, optional=True)
        fields.flag("update_at_start", self.update_at_start)

    @property
    def needs(self) -> frozenset[str]:
        """Signals of the rewards of the actors that are on."""
        return self.needs_at(0)

    def needs_at(self, step: int) -> frozenset[str]:
        """Signals of the rewards of the actors that move after ``step``."""
        needs: frozenset[str] = frozenset()
        if self.global_actor and step % self._interval("global") == 0:
            needs |= GLOBAL_REWARDS[self.global_reward].needs
        if self.local_actor and step % self._interval("local") == 0:
            needs |= LOCAL_REWARDS[self.local_reward].needs
        return needs

    @property
    def interval(self) -> int:
        """Optimiser steps between two calls of ``update``: fits both levels' intervals."""
        return math.gcd(*(self._interval(level) for level in LEVELS))

    def init(self, sizes: IntArray, weights: FloatArray | None = None) -> PolicyState:
        """Actors at the prior, and no rewards yet.

        The state has ``prior`` and ``actors`` by level, ``memory`` (the running rewards and their
        errors), ``last`` (what ``explain`` gives), ``moved`` by level and ``updates``, the number
        of calls of ``update`` after the start.
        """
        subsets, groups = two_level_prior(sizes, weights, self.prior_temperature)
        fitted = self.prior_fit and self.global_actor
        actors = {
            "global": fit_to_prior(subsets) if fitted else Actor.start(subsets),
            "local": Actor.start(groups),
        }
        return {
            "prior": {"global": subsets.tolist(), "local": groups.tolist()},
            "actors": {level: actor.to_json() for level, actor in actors.items()},
            "moved": {"global": fitted, "local": False},
            "memory": {},
            "last": {},
            "updates": 0,
        }

    def probabilities(self, state: PolicyState) -> FloatArray:
        """(K, G) p_global(i) p_local^i(j), within the floor and the cap."""
        return joint(*(self._level_probabilities(state, level) for level in LEVELS))

    def update(self, state: PolicyState, signals: Signals) -> PolicyState:
        """Pay the actors that are due and move them; the rewards are remembered in any case."""
        if signals.step == 0 and not self.update_at_start:
            return state
        updates = state["updates"] + (signals.step > 0)
        state = {**state, "updates": updates, "last": {"notes": []}}
        if self.global_actor:
            state = self._pay(state, signals, "global", updates)
        if self.local_actor:
            state = self._pay(state, signals, "local", updates)
        return state

    def explain(self, state: PolicyState) -> Mapping[str, Any]:
        """What the last update saw.

        Returns:
            ``global`` and ``local``, where that actor is on: ``rewards`` and ``errors`` as measured
            (``None`` where unknown) and ``paid``, what the actor was given after smoothing and
            shrinking; ``notes``: [code, text] pairs. Empty before the first update.
        """
        return dict(state["last"])

    def _interval(self, level: str) -> int:
        own = self.global_interval if level == "global" else self.local_interval
        return self.update_interval if own is None else own

    def _level_probabilities(self, state: PolicyState, level: str) -> FloatArray:
        prior = from_plain(state["prior"][level])
        if not state["moved"][level]:
            return prior  # to the last bit: a rate of 0 must draw what the prior draws
        chosen = Actor.from_json(state["actors"][level]).probabilities(prior > 0)
        return within_bounds(chosen, *self._bounds(prior))

    def _bounds(self, prior: FloatArray) -> tuple[FloatArray, FloatArray]:
        arms = prior > 0
        uniform = arms / np.maximum(arms.sum(axis=-1, keepdims=True), 1)
        low = self.floor * (prior if self.floor_reference == "prior" else uniform)
        ratio = math.inf if self.max_ratio is None else self.max_ratio
        high = np.where(arms, np.minimum(np.where(arms, prior, 1.0) * ratio, 1.0), 0.0)
        return low, np.maximum(low, high)

    def _pay(self, state: PolicyState, signals: Signals, level: str, updates: int) -> PolicyState:
        prior = from_plain(state["prior"][level])
        rewards, errors, notes = self._measure(signals, level, prior > 0)
        memory = self._remember(state["memory"].get(level), rewards, errors, level)
        worth: FloatArray | float = 1.0
        if level == "global" and self.repeat_scale is not None:
            worth = repeated(np.where(prior > 0, signals.passes, np.nan), self.repeat_scale)
        paid, active, more = self._wages(memory, prior > 0, level, worth)
        entry = {"rewards": rewards, "errors": errors, "paid": paid}
        last = {**state["last"], level: {key: to_plain(value) for key, value in entry.items()}}
        last["notes"] = state["last"]["notes"] + notes + more
        kept = {key: to_plain(value) for key, value in memory.items()}
        state = {**state, "last": last, "memory": {**state["memory"], level: kept}}
        if updates % (self._interval(level) // self.interval) or not active.any():
            return state
        return self._move(state, level, prior, paid, active)

    def _measure(
        self, signals: Signals, level: str, arms: BoolArray
    ) -> tuple[FloatArray, FloatArray, list[Note]]:
        """Rewards and errors as measured, NaN where they cannot be used."""
        table, name = (
            (GLOBAL_REWARDS, self.global_reward)
            if level == "global"
            else (LOCAL_REWARDS, self.local_reward)
        )
        values, errors = table[name].compute(signals)
        rewards, notes = usable(values, arms, level)
        return rewards, np.where(np.isfinite(errors) & arms, errors, np.nan), notes

    def _remember(
        self,
        memory: Mapping[str, Any] | None,
        rewards: FloatArray,
        errors: FloatArray,
        level: str,
    ) -> dict[str, FloatArray]:
        """The running rewards with the new ones in; an unknown one leaves the running one alone."""
        if level == "local" and self.normalise_local:
            centre = mean_of_known(rewards)
            scale = np.where(centre > 0, centre, 1.0)
            rewards, errors = rewards / scale, errors / scale
        rewards = clip_to_median(rewards, self.reward_clip)
        smoothed = self.ema_alpha is not None and self.ema_level in ("both", level)
        alpha = self.ema_alpha if smoothed and self.ema_alpha is not None else 1.0
        if memory is None:
            start = self.ema_start if smoothed and self.ema_start is not None else np.nan
            old, old_errors = np.full(rewards.shape, start), np.full(rewards.shape, np.nan)
        else:
            old, old_errors = from_plain(memory["rewards"]), from_plain(memory["errors"])
        return {
            "rewards": smooth(rewards, old, alpha),
            "errors": smooth_errors(errors, old_errors, alpha),
        }

    def _wages(
        self,
        memory: Mapping[str, FloatArray],
        arms: BoolArray,
        level: str,
        worth: FloatArray | float,
    ) -> tuple[FloatArray, BoolArray, list[Note]]:
        """Rewards to pay (NaN for arms that do not exist), actors that can move, notes."""
        known = np.isfinite(memory["rewards"]) & arms
        rewards = np.where(known, memory["rewards"], np.nan)
        paid = shrink(rewards, memory["errors"], self.shrinkage) ** self.reward_power
        paid = worth * np.where(arms & ~known, mean_of_known(paid), paid)
        choices, seen = arms.sum(axis=-1), known.sum(axis=-1)
        positive = np.where(np.isfinite(paid), paid, 0.0).sum(axis=-1) > 0
        notes: list[Note] = []
        missing = int((arms & ~known & (choices > 1)[..., None]).sum())
        if missing:
            text = (
                f"{missing} of {int(arms.sum())} {level} rewards never measured; the mean stands in"
            )
            notes.append(["unknown-reward", text])
        if bool(((seen > 1) & ~positive).any()):
            notes.append(["zero-reward", f"all {level} rewards are 0; the actor stays"])
        return paid, np.asarray((seen > 1) & positive), notes

    def _move(
        self,
        state: PolicyState,
        level: str,
        prior: FloatArray,
        paid: FloatArray,
        active: BoolArray,
    ) -> PolicyState:
        actor = Actor.from_json(state["actors"][level])
        rewards = np.where(np.isfinite(paid), paid, 0.0)
        for _ in range(self.local_updates_per_interval if level == "local" else 1):
            actor = self._step(actor, rewards, prior, active)
        still = self.step_rule == "closed-form" and self.rate == 0.0
        return {
            **state,
            "actors": {**state["actors"], level: actor.to_json()},
            "moved": {**state["moved"], level: state["moved"][level] or not still},
        }

    def _step(
        self, actor: Actor, rewards: FloatArray, prior: FloatArray, active: BoolArray
    ) -> Actor:
        if self.step_rule == "closed-form":
            return closed_form_step(
                actor,
                rewards,
                rate=self.rate,
                prior=prior,
                prior_pull=self.prior_pull,
                allowed=prior > 0,
                active=active,
            )
        return reinforce_step(
            actor,
            rewards,
            learning_rate=self.actor_learning_rate,
            inner_steps=self.inner_steps,
            optimiser=self.step_rule,
            allowed=prior > 0,
            active=active,
        )
