"""Cells of which training showed too little in an interval, for a small probe to fill up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from hbo.balancer import Balancer
from hbo.errors import ConfigError
from hbo.measure.probe import LOSS_SIGNALS, Probe
from hbo.measure.sharding import check_probe
from hbo.signals import GRADIENT_NORM, PERPLEXITY_RATIO

if TYPE_CHECKING:
    from hbo.policies.actor import BoolArray


def lacking(
    balancer: Balancer, probe: Probe, model: nn.Module, observed: frozenset[str]
) -> Iterator[tuple[frozenset[str], BoolArray]]:
    """What a probe has to add to what was observed.

    A cell shows enough of a signal with as many values as the probe would take of it
    (``examples_per_cell``, or all of a smaller cell). Signals that no probe can measure here stay
    as they are: their cells are unknown, and the policy says what stands in.

    Args:
        balancer: Its observations are gathered: all ranks see the same tables.
        probe: Says how many examples.
        model: The model in training.
        observed: Signals that training shows.

    Yields:
        Signals, and the (K, G) cells to measure them on.
    """
    now = balancer.observations.signals(balancer.step, balancer.draws)
    enough = np.minimum(balancer.mixture.sizes, probe.examples_per_cell)
    losses = observed & LOSS_SIGNALS
    if probe.first_loss is None:
        losses -= {PERPLEXITY_RATIO}
    for names in (losses, observed & {GRADIENT_NORM}):
        if not names or not _can_be_probed(model, names):
            continue
        counts = np.min([now.table(name).counts for name in names], axis=0)
        cells = counts < enough
        if cells.any():
            yield names, cells


def _can_be_probed(model: nn.Module, names: frozenset[str]) -> bool:
    try:
        check_probe(model, names)
    except ConfigError:
        return False
    return True
