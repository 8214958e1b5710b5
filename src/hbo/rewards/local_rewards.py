"""Local rewards: what the Local Actor of each subset is paid for each difficulty group, (K, G)."""

from __future__ import annotations

from hbo.rewards.reward import Measured, Reward, cell_values, entry
from hbo.signals import GRADIENT_NORM, LOSS, PERPLEXITY, PERPLEXITY_RATIO, Signals


def relative_perplexity(signals: Signals) -> Measured:
    """R_local(i, j) = (1/K) sum_k PPL(y_k; x_k, theta) / PPL(y_k; x_k, theta_0).

    The mean over examples of cell (i, j) of the ratio of response perplexities, now against the
    untouched model theta_0. High: little progress so far. A mean of ratios, hence heavy-tailed.

    Eq. 8 of arXiv 2505.12300.
    """
    return cell_values(signals.table(PERPLEXITY_RATIO))


def perplexity(signals: Signals) -> Measured:
    """Mean over the cell of PPL(y; x, theta): the "PPL" rows of Table 7 of arXiv 2505.12300."""
    return cell_values(signals.table(PERPLEXITY))


def loss(signals: Signals) -> Measured:
    """Mean loss of the cell, nats per response token: the "Loss" rows of Table 7."""
    return cell_values(signals.table(LOSS))


def gradient_norm(signals: Signals) -> Measured:
    """Mean per-example gradient norm of the cell; not in the paper."""
    return cell_values(signals.table(GRADIENT_NORM))


LOCAL_REWARDS: dict[str, Reward] = dict(
    (
        entry("relative-perplexity", relative_perplexity, PERPLEXITY_RATIO),
        entry("perplexity", perplexity, PERPLEXITY),
        entry("loss", loss, LOSS),
        entry("gradient-norm", gradient_norm, GRADIENT_NORM),
    )
)
"""Every local reward by name."""
