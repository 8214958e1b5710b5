"""Simulations as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hbo.mixture import FloatArray
from hbo.simulate.loop import Simulation
from hbo.simulate.side_by_side import Standing

BARS = "▁▂▃▄▅▆▇█"


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


def render_standings(standings: Sequence[Standing]) -> str:
    """A row for each policy, the least regret first."""
    width = max(len("policy"), *(len(standing.policy) for standing in standings))
    lines = [
        f"{'policy':<{width}} {'macro':>8} {'regret':>8} {'+-':>7} {'worst':>8} {'passes':>7} "
        f"{'seconds':>7}"
    ]
    for one in standings:
        error = f"{one.regret_error:>7.4f}" if np.isfinite(one.regret_error) else f"{'':>7}"
        lines.append(
            f"{one.policy:<{width}} {one.macro:>8.4f} {one.regret:>8.4f} {error} "
            f"{one.worst:>8.4f} {one.passes:>7.1f} {one.seconds:>7.2f}"
        )
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
