"""A policy on a toy learner with known dynamics: in a second, up to thousands of subsets.

The toy stands in for the model and the trainer only; mixture, policy, balancer and stream of draws
are the real ones. Its best fixed mixture can be worked out, so a policy's regret is a number.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from hbo.balancer import Balancer
from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray, Mixture
from hbo.observations import loss_signals
from hbo.policies import Policy, make_policy
from hbo.signals import BATCH_GRADIENT_NORM, GRADIENT_COSINE, GRADIENT_NORM

UPDATES = 30
"""Updates of a run whose policy is given by name."""
REPETITION = 15.0
"""Passes after which repeating a cell's examples teaches next to nothing more."""
GRADIENT_FLOOR = 0.3
"""Gradient norm of an example of a learnt cell: noise that training cannot remove."""
RANGES = {
    "num_subsets": (1, 100_000),
    "num_groups": (1, 1_000),
    "steps": (1, 10_000_000),
    "batch": (1, 1_000_000),
    "noise": (0.0, 10.0),
    "transfer": (0.0, 1.0),
    "imbalance": (1.0, 1e6),
    "probe_examples": (0, 10_000),
}
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, eq=False)
class ToyLearner:
    """A loss for every cell, falling with the draws that the cell gets.

    With n draws of a cell of u examples, of which repeats count less and less,
    e(n) = n up to u, then u (1 + r (1 - exp(-(n / u - 1) / r))), the cell's loss is
    floor + gap exp(-x / scale), x = (1 - transfer) e(n) + transfer x mean draws of all cells.
    The norm of an example's gradient is sqrt(loss - floor) + 0.3: that of a quadratic bowl, plus
    what noise leaves. The form of e(n), with r = 15, follows arXiv 2305.16264 (its Eq. 5).

    Args:
        sizes: (K, G) examples per cell.
        floor: (K, G) loss that training cannot go below, nats per token.
        gap: (K, G) first loss above the floor.
        scale: (K, G) draws after which the gap is 1/e of what it was.
        transfer: Share of a draw that teaches all cells alike, 0 to 1.
        noise: Standard deviation of an example's loss around its cell's.
    """

    sizes: IntArray
    floor: FloatArray
    gap: FloatArray
    scale: FloatArray
    transfer: float = 0.0
    noise: float = 0.3

    @classmethod
    def random(
        cls,
        num_subsets: int,
        num_groups: int,
        draws: int,
        *,
        seed: int,
        imbalance: float = 50.0,
        transfer: float = 0.0,
        noise: float = 0.3,
    ) -> ToyLearner:
        """A learner whose cells need, between them, about as many draws as there are.

        Sizes fall from largest to smallest by ``imbalance``; harder groups start and end higher and
        learn more slowly; how fast a subset learns does not depend on its size.
        """
        generator = np.random.default_rng([seed, 1])
        smallest = 4 * num_groups
        steps = np.linspace(1.0, 0.0, num_subsets) if num_subsets > 1 else np.ones(1)
        totals = np.round(smallest * imbalance**steps).astype(np.int64)
        sizes = totals[:, None] // num_groups + (
            np.arange(num_groups) < totals[:, None] % num_groups
        )
        hardness = np.linspace(0.5, 1.5, num_groups) if num_groups > 1 else np.ones(1)
        subset = generator.lognormal(0.0, 0.7, size=(num_subsets, 1))
        cell = generator.lognormal(0.0, 0.2, size=(num_subsets, num_groups))
        return cls(
            sizes=sizes.astype(np.int64),
            floor=generator.uniform(0.3, 1.0, size=(num_subsets, 1)) + 0.5 * hardness,
            gap=generator.uniform(0.5, 1.5, size=(num_subsets, 1)) * cell,
            scale=draws / cell.size * subset * hardness / cell,
            transfer=transfer,
            noise=noise,
        )

    def losses(self, draws: FloatArray | IntArray) -> FloatArray:
        """(K, G) loss of each cell after (K, G) draws, which may be fractions."""
        shared = self.transfer * float(np.sum(draws)) / draws.size
        taught = (1.0 - self.transfer) * self._effective(draws) + shared
        return np.asarray(self.floor + self.gap * np.exp(-taught / self.scale), dtype=np.float64)

    def macro(self, losses: FloatArray) -> float:
        """Mean over subsets of the mean loss over their examples: every subset counts alike."""
        return float((self._cell_weights() * losses).sum())

    def best(self, draws: int) -> FloatArray:
        """(K, G) mixture whose macro loss after ``draws`` draws is the lowest of all fixed ones.

        Every cell's loss is convex in its draws, so at the best mixture one more draw gains the
        same wherever it goes: -c d loss / dn = lambda, or less where n = 0, with c the cell's
        weight in the macro loss. Bisection on lambda, and inside it on each n.
        """
        low, high = -60.0, 30.0  # log lambda
        amounts = np.zeros(self.sizes.shape)
        for _ in range(40):
            middle = (low + high) / 2
            amounts = self._draws_at(middle, draws)
            low, high = (middle, high) if amounts.sum() > draws else (low, middle)
        return np.asarray(amounts / amounts.sum(), dtype=np.float64)

    def _draws_at(self, log_price: float, draws: int) -> FloatArray:
        low, high = np.zeros(self.sizes.shape), np.full(self.sizes.shape, float(draws))
        for _ in range(30):
            middle = (low + high) / 2
            more = self._log_gain(middle, draws) > log_price
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return np.asarray(high, dtype=np.float64) * (self._log_gain(0.0 * high, draws) > log_price)

    def _log_gain(self, draws: FloatArray, total: int) -> FloatArray:
        """Logarithm of the fall of the macro loss per draw, but for what all cells have alike."""
        repeats = np.maximum(draws / self.sizes - 1.0, 0.0) / REPETITION
        first = np.log(self._cell_weights() * self.gap / self.scale)
        shared = self.transfer * total / draws.size
        taught = (1.0 - self.transfer) * self._effective(draws) + shared
        return np.asarray(first - taught / self.scale - repeats, dtype=np.float64)

    def _effective(self, draws: FloatArray | IntArray) -> FloatArray:
        repeats = np.maximum(draws / self.sizes - 1.0, 0.0)
        worth = REPETITION * -np.expm1(-repeats / REPETITION)
        return np.asarray(np.minimum(draws, self.sizes) + self.sizes * worth, dtype=np.float64)

    def _cell_weights(self) -> FloatArray:
        shares = self.sizes / self.sizes.sum(axis=1, keepdims=True)
        return np.asarray(shares / len(self.sizes), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Simulation:
    """What happened, at step 0, after every update and at the end: T moments.

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
        probe_examples: Examples of every cell measured at each update besides those drawn.
        learner: Dynamics of your own; then ``num_subsets``, ``num_groups``, ``noise``, ``transfer``
            and ``imbalance`` are its.

    Raises:
        ConfigError: A number is out of range, or the policy is unknown.

    Example:
        >>> result = simulate("uni", num_subsets=3, steps=60, seed=1)
        >>> result.probabilities[-1].sum(axis=1).round(3).tolist()
        [0.333, 0.333, 0.333]
    """
    _check((num_subsets, num_groups, steps, batch, noise, transfer, imbalance, probe_examples))
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
    )
    width = len(str(len(toy.sizes)))
    names = tuple(f"subset-{number + 1:0{width}}" for number in range(len(toy.sizes)))
    mixture = Mixture(names, toy.sizes)
    balancer = Balancer(mixture, policy, seed=seed, draws_per_step=batch)
    trace, notes = _train(balancer, toy, steps, probe_examples, seed)
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
        best_macro=toy.macro(toy.losses(best * steps * batch)),
        notes=notes,
        seconds=time.perf_counter() - start,
    )


def _train(
    balancer: Balancer, toy: ToyLearner, steps: int, probe_examples: int, seed: int
) -> tuple[list[tuple[int, FloatArray, FloatArray]], dict[str, int]]:
    generator = np.random.default_rng([seed, 2])
    offsets = generator.normal(0.0, toy.noise, size=balancer.mixture.num_examples)
    first = toy.losses(np.zeros(toy.sizes.shape))
    trace = [(0, balancer.probabilities, first)]
    notes: dict[str, int] = {}
    drawn: list[IntArray] = []
    losses: list[FloatArray] = []
    for step in range(1, steps + 1):
        now = toy.losses(balancer.draws).ravel()
        drawn.append(balancer.advance())
        losses.append(now[balancer.mixture.cell_of(drawn[-1])])
        if not balancer.due:
            continue
        if probe_examples:
            drawn.append(_probe(balancer.mixture, probe_examples, generator))
            losses.append(now[balancer.mixture.cell_of(drawn[-1])])
        _observe(balancer, toy, np.concatenate(drawn), np.concatenate(losses), offsets, generator)
        drawn, losses = [], []
        update = balancer.update()
        for code in {note[0] for note in update.explanation.get("notes", [])}:
            notes[code] = notes.get(code, 0) + 1
        trace.append((step, update.after, toy.losses(balancer.draws)))
    if trace[-1][0] != steps:
        trace.append((steps, balancer.probabilities, toy.losses(balancer.draws)))
    return trace, notes


def _probe(mixture: Mixture, count: int, generator: np.random.Generator) -> IntArray:
    """``count`` examples of every cell (some twice, where it has fewer)."""
    sizes = mixture.sizes.ravel()
    filled = np.flatnonzero(sizes)
    places = (generator.random((len(filled), count)) * sizes[filled, None]).astype(np.int64)
    return np.asarray((mixture.offsets[filled][:, None] + places).ravel(), dtype=np.int64)


def _observe(
    balancer: Balancer,
    toy: ToyLearner,
    example_ids: IntArray,
    cell_losses: FloatArray,
    offsets: FloatArray,
    generator: np.random.Generator,
) -> None:
    """Hand in what a trainer would have measured since the last update."""
    cells = balancer.mixture.cell_of(example_ids)
    above = np.maximum(cell_losses - toy.floor.ravel()[cells], 0.0)
    wobble = generator.normal(0.0, toy.noise, size=(2, len(example_ids)))
    first = (toy.floor + toy.gap).ravel()[cells] + offsets[example_ids]
    values = loss_signals(cell_losses + offsets[example_ids] + 0.3 * wobble[0], first)
    norms = (np.sqrt(above) + GRADIENT_FLOOR) * np.exp(wobble[1])
    balancer.observe(example_ids, values | {GRADIENT_NORM: norms})
    left = toy.losses(balancer.draws) - toy.floor
    whole = np.sqrt(np.maximum((toy.sizes * left).sum(axis=1) / toy.sizes.sum(axis=1), 0.0))
    balancer.observe_whole(BATCH_GRADIENT_NORM, whole)
    alike = (1.0 - toy.transfer) * whole / max(float(whole.sum()), 1e-12)
    balancer.observe_whole(GRADIENT_COSINE, toy.transfer + alike)


def _check(settings: tuple[float, ...]) -> None:
    for value, (name, (low, high)) in zip(settings, RANGES.items(), strict=True):
        if not low <= value <= high:
            raise ConfigError(f"{name} is {value:g}; allowed: from {low:g} to {high:g}")


def render_text(result: Simulation, *, rows: int = 12) -> str:
    """A table for the terminal: shares over time beside the best ones, passes and losses.

    Args:
        result: A simulation.
        rows: Subsets shown at most; the middle ones are left out.
    """
    shares = result.probabilities.sum(axis=2)
    best, losses = result.best_probabilities.sum(axis=1), result.subset_losses
    names = result.mixture.names
    width = max(len("subset"), *(len(name) for name in names))
    lines = [
        f"{'subset':<{width}} {'examples':>8}  {'share over time':<24} {'first':>6} {'last':>6}"
        f" {'best':>6} {'passes':>6} {'loss':>6} {'now':>6}"
    ]
    for index in _shown(len(names), rows):
        if index is None:
            lines.append(f"{'...':<{width}}")
            continue
        lines.append(
            f"{names[index]:<{width}} {result.mixture.subset_sizes[index]:>8}  "
            f"{sparkline(shares[:, index]):<24} {shares[0, index]:>6.1%} {shares[-1, index]:>6.1%}"
            f" {best[index]:>6.1%} {result.passes[index]:>6.1f} {losses[0, index]:>6.3f}"
            f" {losses[-1, index]:>6.3f}"
        )
    worst, worst_loss = result.worst
    groups = result.probabilities[-1].sum(axis=0)
    lines += [
        f"\nmacro loss   {result.macro[0]:.4f} -> {result.macro[-1]:.4f}, best fixed mixture "
        f"{result.best_macro:.4f}, regret {result.regret:.4f}",
        f"worst subset {worst}, loss {worst_loss:.4f}",
        "groups       " + "  ".join(f"{share:.1%}" for share in groups) + "  (easiest to hardest)",
        f"updates      {len(result.steps) - 1} moments in {result.steps[-1]} steps, "
        f"{result.draws.sum()} draws, {result.seconds:.2f} s",
    ]
    lines += [f"note         {code}, {count} updates" for code, count in result.notes.items()]
    return "\n".join(lines)


def sparkline(values: FloatArray, width: int = 24) -> str:
    """Bars from 0 to the highest value, ``width`` of them at most.

    Example:
        >>> sparkline(np.array([0.0, 0.5, 1.0]))
        '▁▅█'
    """
    picked = values[np.linspace(0, len(values) - 1, min(width, len(values))).round().astype(int)]
    top = float(picked.max())
    heights = np.round(picked / top * (len(BARS) - 1)) if top > 0 else np.zeros(len(picked))
    return "".join(BARS[int(height)] for height in heights)


def _shown(count: int, rows: int) -> list[int | None]:
    if count <= rows:
        return list(range(count))
    head = rows // 2
    return [*range(head), None, *range(count - (rows - head), count)]
