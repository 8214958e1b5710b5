"""Cutting a subset into difficulty groups of equal count."""

from __future__ import annotations

import numpy as np

from hbo.errors import ConfigError
from hbo.mixture import FloatArray, IntArray


def assign_groups(scores: FloatArray, num_groups: int, drop_easiest: float = 0.0) -> IntArray:
    """Difficulty group of each example of one subset, 0 the easiest.

    Examples are ranked by score, and ranks are cut into G = ``num_groups`` runs. No example is
    dropped: of n examples each group has n div G, and the n mod G easiest groups have one more
    (NumPy's ``array_split`` rule), so with n < G there are n groups of one and the hardest groups
    are empty. Equal scores stay in the order of the examples, +infinity comes after every number,
    and NaN, a score nobody could measure, after that: it is treated as hardest.

    The paper's groups are of equal size (section 3.2 of arXiv 2505.12300, M_i = 4); the released
    code drops the n mod 4 hardest, here they stay.

    Args:
        scores: (n,) higher is harder.
        num_groups: G, at least 1.
        drop_easiest: Share of the examples, the easiest first, that no group gets (rounded down);
            Table 5 of the paper.

    Returns:
        (n,) group numbers from 0 to G - 1, -1 for what is dropped.

    Raises:
        ConfigError: ``num_groups`` is below 1, ``drop_easiest`` is not in [0, 1), or ``scores`` are
            not one number per example.

    Example:
        >>> assign_groups(np.array([0.9, 0.1, 0.5, np.nan, 0.1]), 2).tolist()
        [1, 0, 0, 1, 0]
        >>> assign_groups(np.array([0.9, 0.1, 0.5, np.nan, 0.1]), 2, drop_easiest=0.4).tolist()
        [0, -1, 0, 1, -1]
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ConfigError(f"difficulty scores must be one per example, got shape {values.shape}")
    if num_groups < 1:
        raise ConfigError(f"difficulty.groups must be at least 1, got {num_groups}")
    if not 0.0 <= drop_easiest < 1.0:
        raise ConfigError(f"difficulty.drop_easiest is {drop_easiest}; allowed: from 0 to below 1")
    dropped = int(drop_easiest * values.size)
    each, extra = divmod(values.size - dropped, num_groups)
    counts = np.full(num_groups, each)
    counts[:extra] += 1
    groups = np.full(values.size, -1, dtype=np.int64)
    order = np.argsort(values, kind="stable")[dropped:]
    groups[order] = np.repeat(np.arange(num_groups), counts)
    return groups
