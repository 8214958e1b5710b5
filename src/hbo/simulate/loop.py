"""One policy on one toy learner: the loop that a trainer would run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from hbo.balancer import Balancer
from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.policies import Policy, make_policy
from hbo.simulate.measured import Instruments
from hbo.simulate.toy import ToyLearner

UPDATES = 30
"""Updates of a run whose policy is given by name."""
FIRST_PROBE = 2
"""Examples of every cell that an update before the first step measures at least."""
RANGES = {
    "num_subsets": (1, 100_000),
    "num_groups": (1, 1_000),
    "steps": (1, 10_000_000),
    "batch": (1, 1_000_000),
    "noise": (0.0, 10.0),
    "transfer": (0.0, 1.0),
    "imbalance": (1.0, 1e6),
    "overfit": (0.0, 10.0),
    "probe_examples": (0, 10_000),
}


@dataclass(frozen=True, eq=False)
class Simulation:
    """What happened, at step 0, after every update and at the end: T moments.

    Losses are held-out ones; where repeats do no harm (``overfit`` 0), training losses too.

    Args:
        mixture: The subsets and their sizes.
        steps: (T,) optimiser steps.
        probabilities: (T, K, G) newest probabilities at each moment.
        losses: (T, K, G) loss of each cell.
        macro: (T,) mean over subsets of their loss.
        draws: (K, G) draws in the whole run.
        best_probabilities: (K, G) the fixed mixture with the lowest final macro loss.
        best_macro: Its macro loss.
        notes: Codes of what the policy remarked, with the number of updates that did.
        seconds: Wall time.
    """

    mixture: Mixture
    steps: IntArray
    probabilities: FloatArray
    losses: FloatArray
    macro: FloatArray
    draws: IntArray
    best_probabilities: FloatArray
    best_macro: float
    notes: dict[str, int]
    seconds: float

    @property
    def subset_losses(self) -> FloatArray:
        """(T, K) mean loss over the examples of each subset."""
        sizes = self.mixture.sizes
        shares = sizes / sizes.sum(axis=1, keepdims=True)
        return np.asarray((self.losses * shares).sum(axis=2), dtype=np.float64)

    @property
    def worst(self) -> tuple[str, float]:
        """Name and final loss of the subset with the highest."""
        last = self.subset_losses[-1]
        return self.mixture.names[int(last.argmax())], float(last.max())

    @property
    def passes(self) -> FloatArray:
        """(K,) draws of each subset over its examples."""
        return np.asarray(self.draws.sum(axis=1) / self.mixture.subset_sizes, dtype=np.float64)

    @property
    def regret(self) -> float:
        """Final macro loss above that of the best fixed mixture, nats per token."""
        return float(self.macro[-1]) - self.best_macro


def simulate(
    policy: Policy | str,
    *,
    num_subsets: int = 8,
    num_groups: int = 4,
    steps: int = 600,
    batch: int = 16,
    seed: int = 0,
    noise: float = 0.3,
    transfer: float = 0.0,
    imbalance: float = 50.0,
    overfit: float = 0.0,
    probe_examples: int = 0,
    learner: ToyLearner | None = None,
) -> Simulation:
    """Run a policy on a toy learner.

    Args:
        policy: A policy, or the name of one: then it updates 30 times in the run.
        num_subsets: K.
        num_groups: G.
        steps: Optimiser steps.
        batch: Draws per optimiser step.
        seed: Of the learner, the noise and the stream of draws.
        noise: Standard deviation of an example's loss around its cell's, nats per token.
        transfer: Share of a draw that teaches all cells alike, 0 to 1.
        imbalance: Size of the largest subset over that of the smallest.
        overfit: Rise of a cell's held-out loss with each pass after the first, nats per token.
        probe_examples: Examples of every cell measured at each update besides those drawn.
        learner: Dynamics of your own; then ``num_subsets``, ``num_groups``, ``noise``,
            ``transfer``, ``imbalance`` and ``overfit`` are its.

    Raises:
        ConfigError: A number is out of range, or the policy is unknown.

    Example:
        >>> result = simulate("uni", num_subsets=3, steps=60, seed=1)
        >>> result.probabilities[-1].sum(axis=1).round(3).tolist()
        [0.333, 0.333, 0.333]
    """
    numbers = (num_subsets, num_groups, steps, batch, noise, transfer, imbalance, overfit)
    _check((*numbers, probe_examples))
    start = time.perf_counter()
    if isinstance(policy, str):
        policy = make_policy(policy, update_interval=max(1, steps // UPDATES))
    toy = learner or ToyLearner.random(
        num_subsets,
        num_groups,
        steps * batch,
        seed=seed,
        imbalance=imbalance,
        transfer=transfer,
        noise=noise,
        overfit=overfit,
    )
    width = len(str(len(toy.sizes)))
    names = tuple(f"subset-{number + 1:0{width}}" for number in range(len(toy.sizes)))
    mixture = Mixture(names, toy.sizes)
    balancer = Balancer(mixture, policy, seed=seed, draws_per_step=batch)
    trace, notes = _train(balancer, toy, steps, probe_examples, Instruments(toy, mixture, seed))
    best = toy.best(steps * batch)
    moments, probabilities, losses = zip(*trace, strict=True)
    return Simulation(
        mixture=mixture,
        steps=np.array(moments, dtype=np.int64),
        probabilities=np.stack(probabilities),
        losses=np.stack(losses),
        macro=np.array([toy.macro(table) for table in losses]),
        draws=balancer.draws,
        best_probabilities=best,
        best_macro=toy.macro(toy.heldout(best * steps * batch)),
        notes=notes,
        seconds=time.perf_counter() - start,
    )


Moment = tuple[int, FloatArray, FloatArray]


def _train(
    balancer: Balancer, toy: ToyLearner, steps: int, probe_examples: int, instruments: Instruments
) -> tuple[list[Moment], dict[str, int]]:
    trace: list[Moment] = [(0, balancer.probabilities, toy.heldout(balancer.draws))]
    notes: dict[str, int] = {}
    seen: list[tuple[IntArray, FloatArray]] = []  # examples, and the losses of their cells

    def measure(example_ids: IntArray) -> None:
        cells = balancer.mixture.cell_of(example_ids)
        seen.append((example_ids, now.ravel()[cells]))

    for step in range(steps + 1):
        now = toy.losses(balancer.draws)
        if step:
            measure(balancer.advance())
        if not balancer.due:
            continue
        count = probe_examples if step else max(probe_examples, FIRST_PROBE)
        if count:
            measure(instruments.probe(count))
        _update(balancer, instruments, seen, notes)
        seen.clear()
        trace.append((step, balancer.probabilities, toy.heldout(balancer.draws)))
    if trace[-1][0] != steps:
        trace.append((steps, balancer.probabilities, toy.heldout(balancer.draws)))
    return trace, notes


def _update(
    balancer: Balancer,
    instruments: Instruments,
    seen: list[tuple[IntArray, FloatArray]],
    notes: dict[str, int],
) -> None:
    """Hand in what a trainer would have measured since the last update, and decide."""
    example_ids, losses = (np.concatenate(part) for part in zip(*seen, strict=True))
    balancer.observe(example_ids, instruments.of_examples(example_ids, losses))
    for name, values in instruments.whole(balancer.draws).items():
        balancer.observe_whole(name, values)
    for code in {note[0] for note in balancer.update().explanation.get("notes", [])}:
        notes[code] = notes.get(code, 0) + 1


def _check(settings: tuple[float, ...]) -> None:
    for value, (name, (low, high)) in zip(settings, RANGES.items(), strict=True):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}; allowed: from {low:g} to {high:g}")
