"""What any fixed weights could gain over uniform ones, from the runs of a comparison.

    python benchmarks/headroom.py runs/compare-skills

Between policies with fixed shares the draws of a subset differ, and so does its loss at the end.
With b_i the fall of subset i's loss per unit of ln(draws), by least squares over those runs, the
macro loss is least where shares are in proportion to b_i, and lies below that of uniform shares
by::

    mean_i b_i ln(b_i / mean b)

A first-order estimate: losses are taken as straight lines in ln(draws), and draws of one subset as
nothing to another. What it says is the scale of what there is to win; beside it stands, for each
policy of the comparison, what its draws would gain on those lines, and what it did gain.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import say

FIXED = ("prop", "temp", "uni")
EVERY = "*/seed-*/heldout.json"

Points = dict[str, list[tuple[float, float]]]
"""Subset -> (draws, loss) of each run."""


def runs_of(folder: Path, half: str, policies: Sequence[str] = FIXED) -> Points:
    """What the runs of some policies drew, and came to."""
    found: Points = {}
    for policy in policies:
        for path in sorted(folder.glob(f"{policy}/seed-*/heldout.json")):
            summary = json.loads((path.parent / "summary.json").read_text(encoding="utf-8"))
            heldout = json.loads(path.read_text(encoding="utf-8"))["splits"][half]
            for name, subset in summary["subsets"].items():
                loss = np.average(heldout[name]["losses"], weights=heldout[name]["tokens"])
                found.setdefault(name, []).append((float(subset["draws"]), float(loss)))
    return found


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Fall of the loss per unit of ln(draws), and its standard error."""
    draws, losses = np.array(points).T
    x = np.log(draws) - np.log(draws).mean()
    fall = -(x @ losses) / (x @ x)
    rest = losses - losses.mean() + fall * x
    return float(fall), float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x)))


def gain(slopes: np.ndarray) -> float:
    """Fall of the macro loss from uniform shares to shares in proportion to the slopes."""
    positive = np.maximum(slopes, 0.0)
    ratios = np.where(positive > 0, positive / positive.mean(), 1.0)
    return float(np.mean(positive * np.log(ratios)))


def predicted(slopes: np.ndarray, draws: np.ndarray) -> float:
    """Fall of the macro loss from uniform shares to those of (K, runs) draws, on the lines."""
    shares = draws / draws.sum(axis=0)
    return float(np.mean(slopes[:, None] * np.log(shares * len(slopes))))


def macro(points: Points) -> float:
    """Plain mean over subsets of the mean loss over runs."""
    return float(np.mean([np.mean([loss for _, loss in runs]) for runs in points.values()]))


def main() -> None:
    """Print each subset's slope and best share, what they would gain, and what policies gained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--half", choices=("validation", "test"), default="test")
    chosen = parser.parse_args()
    found = runs_of(chosen.folder, chosen.half)
    fitted = {name: slope(points) for name, points in found.items()}
    slopes = np.array([fall for fall, _ in fitted.values()])
    shares = np.maximum(slopes, 0.0) / np.maximum(slopes, 0.0).sum()
    for (name, (fall, error)), share in zip(fitted.items(), shares, strict=True):
        say(f"{name:12} {fall:+.3f} (+-{error:.3f}) a unit of ln(draws); share {share:.1%}")
    draw = np.random.default_rng(0)
    errors = np.array([error for _, error in fitted.values()])
    # Noise makes slopes differ: what slopes that are all alike would show.
    alike = [gain(slopes.mean() + errors * draw.normal(size=len(slopes))) for _ in range(1000)]
    say(f"best fixed shares gain {gain(slopes):.3f} over uniform ones")
    say(f"slopes that are all alike would show {np.mean(alike):.3f}, from noise alone")
    even = macro(runs_of(chosen.folder, chosen.half, ["uni"]))
    for policy in sorted({path.parent.parent.name for path in chosen.folder.glob(EVERY)}):
        points = runs_of(chosen.folder, chosen.half, [policy])
        draws = np.array([[drawn for drawn, _ in points[name]] for name in fitted])
        by_lines = predicted(slopes, np.maximum(draws, 1))
        say(f"{policy:12} gained {even - macro(points):+.3f}; on the lines {by_lines:+.3f}")


if __name__ == "__main__":
    main()
