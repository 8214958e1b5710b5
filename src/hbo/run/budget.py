"""How many draws a run makes, what each cell gets of them, and what the signals cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hbo.balancer import Balancer
from hbo.config import LoadedConfig
from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.policies import Policy, check_recording, make_policy
from hbo.sampling.limits import Limits
from hbo.signals import GRADIENT_NORM

if TYPE_CHECKING:
    from hbo.measure.examples import Encoded

BACKWARD = 3.0
"""Cost of a forward and a backward pass, in forward passes."""


@dataclass(frozen=True)
class Budget:
    """The size of a run.

    Args:
        steps: Optimiser steps.
        draws_per_step: Examples of one step, all ranks and accumulation steps together.
    """

    steps: int
    draws_per_step: int

    @property
    def draws(self) -> int:
        """Examples drawn in the whole run."""
        return self.steps * self.draws_per_step


def make_budget(training: Any, num_examples: int, world_size: int) -> Budget:
    """Steps and draws, as Trainer counts them: ``max_steps``, else epochs of the summed sizes.

    Args:
        training: ``SFTConfig``.
        num_examples: N, training examples of all subsets.
        world_size: Processes.
    """
    split = bool(training.accelerator_config.split_batches)
    per_step = training.train_batch_size * training.gradient_accumulation_steps
    per_step *= 1 if split else world_size
    if training.max_steps > 0:
        return Budget(int(training.max_steps), int(per_step))
    steps = math.ceil(training.num_train_epochs * math.ceil(num_examples / per_step))
    return Budget(max(steps, 1), int(per_step))


def policy_of(loaded: LoadedConfig) -> Policy:
    """The policy that the configuration names, with its fields."""
    balance = loaded.config.balance
    return make_policy(balance.policy, balance.fields)


def start_probabilities(
    loaded: LoadedConfig,
    mixture: Mixture,
    budget: Budget,
    limits: Limits,
    weights: FloatArray | None,
) -> tuple[FloatArray, int]:
    """(K, G) draw probabilities before any update, and the lag; refuses impossible settings.

    Raises:
        ConfigError: The balancer refuses the settings, at the configuration's line where known.
    """
    balance = loaded.config.balance
    try:
        balancer = Balancer(
            mixture,
            policy_of(loaded),
            seed=loaded.config.seed,
            draws_per_step=budget.draws_per_step,
            lag=balance.lag,
            limits=limits,
            weights=weights,
            unit=balance.unit,
        )
        check_recording(balancer.policy, mixture.names)
    except ConfigError as error:
        raise ConfigError(error.message, where=loaded.document.place(("balance",))) from None
    return balancer.probabilities, balancer.lag


def check_passes(loaded: LoadedConfig, mixture: Mixture, budget: Budget, limits: Limits) -> None:
    """Refuse a run that draws more than ``max_passes`` of all subsets together allow.

    Raises:
        ConfigError: It does; the message names the numbers.
    """
    caps = limits.max_draws(mixture.subset_sizes)
    if (caps < 0).any() or int(caps.sum()) >= budget.draws:
        return
    key = "max_steps" if "max_steps" in loaded.config.training else "num_train_epochs"
    path: tuple[str, ...] = ("training", key)
    if key not in loaded.config.training:
        name = next(n for n, s in loaded.config.datasets.items() if s.max_passes is not None)
        path = ("datasets", name, "max_passes")
    raise loaded.error(
        path,
        f"the run draws {budget.draws} examples ({budget.steps} steps of {budget.draws_per_step}),"
        f" but max_passes of all datasets allow {int(caps.sum())} draws; lower"
        " training.max_steps or raise max_passes",
    )


def expected_draws(probabilities: FloatArray, draws: int, caps: IntArray) -> FloatArray:
    """(K, G) expected draws if the probabilities stayed as they are, within the caps.

    A subset that reaches its cap leaves its further draws to the others, in their ratios.

    Args:
        probabilities: (K, G) joint.
        draws: Of the whole run.
        caps: (K,) most draws of each subset; -1 for none.

    Example:
        >>> expected_draws(np.array([[0.5], [0.5]]), 100, np.array([20, -1])).tolist()
        [[20.0], [80.0]]
    """
    shares = probabilities.sum(axis=1)
    limit = np.where(caps < 0, np.inf, caps.astype(np.float64))
    got = np.zeros(len(shares))
    open_ = shares > 0
    for _ in range(len(shares) + 1):
        rest = draws - got[~open_].sum()
        got[open_] = rest * shares[open_] / shares[open_].sum()
        over = open_ & (got > limit)
        if not over.any():
            break
        got[over] = limit[over]
        open_ &= ~over
        if not open_.any():
            break
    inside = np.divide(
        probabilities, shares[:, None], where=shares[:, None] > 0, out=0 * probabilities
    )
    return np.asarray(inside * got[:, None], dtype=np.float64)


def signal_cost(
    loaded: LoadedConfig,
    mixture: Mixture,
    budget: Budget,
    policy: Policy,
    probabilities: FloatArray,
    adapters: bool,
    examples: int,
    heldout: Sequence[Sequence[Encoded]] = (),
) -> dict[str, Any]:
    """What balancing adds to training, in passes over examples, and as a share of training's work.

    A training pass counts as three forward passes (one forward, and a backward of twice the cost),
    norms read off a step of full fine-tuning as ``COST`` of it. How many cells a probe tops up is
    an expectation: draws of a cell in an interval are Poisson-distributed, about.

    Args:
        loaded: The configuration.
        mixture: Gives the cells.
        budget: Steps and draws.
        policy: Says what it needs, and when.
        probabilities: (K, G) joint, of the beginning.
        adapters: Whether adapters are trained, not the whole model.
        examples: Training examples; more than the mixture's where rows are packed.
        heldout: Validation examples of each subset.

    Returns:
        ``observed``, ``probed``: names of signals, by where they come from; ``measure_every``: one
        step in how many shows its norms, ``None`` where none does; ``updates``: how many, apart
        from one before the first step; forward and backward passes of all probes; ``share``: of
        training's work.

    Raises:
        ConfigError: The policy needs what a probe cannot measure with these settings.
    """
    from hbo.integrations.observed_norms import COST, steps_apart
    from hbo.integrations.top_up import signals_to_probe
    from hbo.measure.probe import LOSS_SIGNALS

    balance = loaded.config.balance
    probed = signals_to_probe(policy.needs, balance.signals)
    observed = policy.needs - probed
    updates = budget.steps // policy.interval if policy.needs else 0
    enough = np.minimum(mixture.sizes, math.ceil(balance.probe_examples / mixture.num_groups))
    in_a_row = examples / mixture.num_examples
    draws = budget.draws_per_step * policy.interval * in_a_row
    trained = budget.draws * in_a_row
    every = balance.measure_every or steps_apart(adapters, policy.interval)
    measured = GRADIENT_NORM in observed
    # What is topped up, within its share of the work.
    forward = _topped_up(probabilities * draws, enough) if observed & LOSS_SIGNALS else 0.0
    backward = _topped_up(probabilities * draws / every, enough) if measured else 0.0
    added = forward + BACKWARD * backward
    within = min(1.0, balance.top_up * BACKWARD * draws / added) if added else 0.0
    forward, backward = forward * within, backward * within
    # What is probed whole.
    forward += enough.sum() if probed & LOSS_SIGNALS else 0.0
    backward += enough.sum() if GRADIENT_NORM in probed else 0.0
    whole = _whole_passes(loaded, mixture, heldout, probed)
    forward, backward = updates * (forward + whole[0]), updates * (backward + whole[1])
    if policy.needs and policy.update_at_start:  # nothing is observed yet
        forward += (enough.sum() if policy.needs & LOSS_SIGNALS else 0.0) + whole[0]
        backward += (enough.sum() if GRADIENT_NORM in policy.needs else 0.0) + whole[1]
    work = (forward + BACKWARD * backward) / (BACKWARD * trained)
    return {
        "observed": sorted(observed),
        "probed": sorted(probed),
        "measure_every": every if measured else None,
        "updates": updates,
        "forward_passes": round(forward),
        "backward_passes": round(backward),
        "training_passes": round(trained),
        "share": float(work + (COST / every if measured and not adapters else 0.0)),
    }


def _whole_passes(
    loaded: LoadedConfig,
    mixture: Mixture,
    heldout: Sequence[Sequence[Encoded]],
    probed: frozenset[str],
) -> IntArray:
    """(2,) forward and backward passes for the signals that one probe measures whole."""
    from hbo.measure.probe import Probe
    from hbo.measure.whole import measurements

    balance = loaded.config.balance
    # It counts, and refuses what it could not measure; examples it never reads.
    probe = Probe(
        mixture,
        get_examples=lambda _ids: [],
        first_loss=lambda ids: np.full(len(ids), np.nan),
        examples_per_cell=math.ceil(balance.probe_examples / mixture.num_groups),
        examples_per_subset=balance.probe_examples,
        heldout=heldout,
        heldout_examples=balance.heldout_examples,
        dropout_passes=balance.dropout_passes,
        learning_rate=lambda: math.nan,
    )
    try:
        probe.check_settings(probed)
    except ConfigError as error:
        raise ConfigError(error.message, where=loaded.document.place(("balance",))) from None
    everywhere = np.arange(mixture.num_subsets)
    tasks = [probe.passes(task, everywhere) for task in measurements(probed)]
    return sum(tasks, start=np.zeros(2, dtype=np.int64))


def _topped_up(shown: FloatArray, enough: IntArray) -> float:
    """Examples that a probe adds, where it takes ``enough`` of a cell that shows fewer."""
    term = np.exp(-shown)
    fewer = np.zeros_like(shown)
    for count in range(int(enough.max(initial=0))):
        fewer += np.where(count < enough, term, 0.0)
        term = term * shown / (count + 1)
    return float((fewer * enough).sum())
