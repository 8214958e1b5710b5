"""How hard each example is for a model, and the groups cut from it."""

from hbo.difficulty.groups import assign_groups
from hbo.difficulty.metrics import METRICS, NEEDS_ALONE, ResponseStatistics, difficulty_scores

__all__ = ["METRICS", "NEEDS_ALONE", "ResponseStatistics", "assign_groups", "difficulty_scores"]
