"""The steps of a policy that follows a list: when it updates, and which of its points are past."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence


def interval_of(steps: Sequence[int], otherwise: int) -> int:
    """Steps between updates, so that one falls on each of ``steps``.

    Args:
        steps: Optimiser steps where probabilities change; 0 is before any.
        otherwise: The interval where there are none.
    """
    return math.gcd(*steps) or otherwise


def points_passed(steps: Sequence[int], step: int) -> int:
    """How many of the rising ``steps`` are at ``step`` or before it."""
    return bisect_right(steps, step)
