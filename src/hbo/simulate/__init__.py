"""A policy on a toy learner with known dynamics: in a second, up to thousands of subsets.

The toy stands in for the model and the trainer only; mixture, policy, balancer and stream of draws
are the real ones. Its best fixed mixture can be worked out, so a policy's regret is a number.
"""

from hbo.simulate.loop import UPDATES, Simulation, simulate
from hbo.simulate.side_by_side import Standing, runnable, side_by_side
from hbo.simulate.tables import render_standings, render_text, sparkline
from hbo.simulate.toy import ToyLearner

__all__ = [
    "UPDATES",
    "Simulation",
    "Standing",
    "ToyLearner",
    "render_standings",
    "render_text",
    "runnable",
    "side_by_side",
    "simulate",
    "sparkline",
]
