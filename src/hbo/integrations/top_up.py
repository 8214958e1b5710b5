"""What a probe has to measure: signals, and cells of which training showed too little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hbo.balancer import Balancer
from hbo.errors import ConfigError
from hbo.measure.probe import LOSS_SIGNALS, Probe
from hbo.measure.sharding import check_probe
from hbo.signals import (
    FIRST_LOSS,
    GRADIENT_NORM,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    TOKENS,
)

if TYPE_CHECKING:
    from hbo.policies.actor import BoolArray

OBSERVABLE = frozenset({LOSS, FIRST_LOSS, PERPLEXITY, PERPLEXITY_RATIO, TOKENS, GRADIENT_NORM})
FORWARD, BOTH_WAYS = 1.0, 3.0
"""Work on an example: a forward pass; a forward and a backward pass, as in training."""


def signals_to_probe(needs: frozenset[str], source: str) -> frozenset[str]:
    """Which of a policy's signals have to be probed: all, or only what training does not show."""
    return needs - {TOKENS, FIRST_LOSS} if source == "probe" else needs - OBSERVABLE


def lacking(
    balancer: Balancer,
    probe: Probe,
    model: nn.Module,
    observed: frozenset[str],
    share: float,
) -> Iterator[tuple[frozenset[str], BoolArray]]:
    """What a probe has to add to what was observed.

    A cell shows enough of a signal with as many values as the probe would take of it
    (``examples_per_cell``, or all of a smaller cell). Where all that is missing would cost more
    than its share, the cells with the fewest values come first, those alike in an order that every
    rank knows. What is left, and signals that no probe can measure here, stay as they are: what is
    known of their cells is what training showed, now or in an earlier interval.

    Args:
        balancer: Its observations are gathered: all ranks see the same tables.
        probe: Says how many examples.
        model: The model in training.
        observed: Signals that training shows.
        share: The most work of it all, as a share of the interval's training.

    Yields:
        Signals, and the (K, G) cells to measure them on.
    """
    now = balancer.observations.signals(balancer.step, balancer.draws)
    enough = np.minimum(balancer.mixture.sizes, probe.examples_per_cell)
    losses = observed & LOSS_SIGNALS
    if probe.first_loss is None:
        losses -= {PERPLEXITY_RATIO}
    kinds = [(losses, FORWARD), (observed & {GRADIENT_NORM}, BOTH_WAYS)]
    kinds = [(names, work) for names, work in kinds if names and _can_be_probed(model, names)]
    if not kinds:
        return
    counts = np.array([np.min([now.table(n).counts for n in names], axis=0) for names, _ in kinds])
    costs = np.array([work * enough for _, work in kinds])
    drawn = balancer.policy.interval * balancer.draws_per_step
    trained = BOTH_WAYS * drawn * probe.examples_per_row
    ties = np.random.default_rng([probe.seed % 2**64, balancer.step]).random(counts.size)
    chosen = _fewest(counts, costs, counts < enough, ties, share * trained)
    for (names, _), cells in zip(kinds, chosen, strict=True):
        if cells.any():
            yield names, cells


def _fewest(
    counts: np.ndarray, costs: np.ndarray, missing: BoolArray, ties: np.ndarray, budget: float
) -> BoolArray:
    """Of what is missing, what the budget allows, the fewest counts first."""
    order = np.lexsort((ties, counts.ravel()))
    order = order[missing.ravel()[order]]
    affordable = order[np.cumsum(costs.ravel()[order]) <= budget]
    chosen = np.zeros(counts.size, dtype=np.bool_)
    chosen[affordable] = True
    return chosen.reshape(counts.shape)


def _can_be_probed(model: nn.Module, names: frozenset[str]) -> bool:
    try:
        check_probe(model, names)
    except ConfigError:
        return False
    return True
