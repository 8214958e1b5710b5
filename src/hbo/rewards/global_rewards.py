"""Global rewards: what the Global Actor is paid for each subset, (K,)."""

from __future__ import annotations

import numpy as np

from hbo.mixture import FloatArray
from hbo.rewards.reward import (
    Measured,
    Reward,
    cell_errors,
    entry,
    subset_values,
    weighted_mean,
)
from hbo.signals import (
    BATCH_GRADIENT_NORM,
    GRADIENT_COSINE,
    GRADIENT_NORM,
    LOSS,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    UNSEEN_LOSS,
    Signals,
)


def batch_gradient_norm(signals: Signals) -> Measured:
    """R_global(i) = || grad L(B_i; theta) ||_2: the norm of the gradient of one batch of subset i.

    B_i is drawn uniformly from subset i and its loss is differentiated as a whole, so the gradients
    of its examples may cancel. One number per subset: no standard error.

    Eq. 7 of arXiv 2505.12300.
    """
    return _whole(signals.whole_values(BATCH_GRADIENT_NORM))


def gradient_norm(signals: Signals) -> Measured:
    """Mean over the examples of subset i of || grad L(x; theta) ||_2, each example by itself.

    What the released code measures instead of Eq. 7. It grows where
    responses are short, since a mean over fewer tokens cancels less.
    """
    return subset_values(signals.table(GRADIENT_NORM), signals.sizes)


def loss(signals: Signals) -> Measured:
    """Mean loss of subset i, nats per response token (Eq. 1 divided by the response's length)."""
    return subset_values(signals.table(LOSS), signals.sizes)


def heldout_loss(signals: Signals) -> Measured:
    """Mean loss of the validation examples of subset i, nats per response token.

    Rows that training repeats have a lower loss than the subset; rows it never saw do not. A subset
    without validation examples is paid its training loss (``loss``). Not in the paper.
    """
    unseen = signals.whole_values(UNSEEN_LOSS)
    seen, errors = subset_values(signals.table(LOSS), signals.sizes)
    known = np.isfinite(unseen)
    return np.where(known, unseen, seen), np.where(known, np.nan, errors)


def perplexity(signals: Signals) -> Measured:
    """Mean over examples of PPL(y; x, theta) = exp(loss)."""
    return subset_values(signals.table(PERPLEXITY), signals.sizes)


def relative_perplexity(signals: Signals) -> Measured:
    """Mean over the examples of subset i of PPL(theta) / PPL(theta_0).

    Eq. 8 of arXiv 2505.12300 taken over a subset; the DIFF reward of MoS (arXiv 2406.08811, Eq. 9).
    """
    return subset_values(signals.table(PERPLEXITY_RATIO), signals.sizes)


def cosine(signals: Signals) -> Measured:
    """Mean cosine of the batch gradient of subset i with those of all subsets.

    The "CosSim" rows of Table 7 of arXiv 2505.12300, which gives no formula; we take the mean over
    the subsets, as MoS does for hidden states. It may be negative.
    """
    return _whole(signals.whole_values(GRADIENT_COSINE))


def progress(signals: Signals) -> Measured:
    """Fall of the mean loss of subset i since the interval before: learning progress.

    Compared cell by cell over the cells seen in both intervals, so that a policy that moves to
    harder groups does not look like a rise. Not in the paper. It may be negative.
    """
    earlier, now = signals.before.get(LOSS), signals.table(LOSS)
    if earlier is None:
        return _whole(np.full(len(signals.sizes), np.nan))
    with np.errstate(over="ignore", invalid="ignore"):  # of values too large: unknown
        errors = np.hypot(cell_errors(earlier), cell_errors(now))
        fall = earlier.mean - now.mean
    return weighted_mean(fall, errors, signals.sizes)


def _whole(values: FloatArray) -> Measured:
    return np.asarray(values, dtype=np.float64), np.full(np.shape(values), np.nan)


GLOBAL_REWARDS: dict[str, Reward] = dict(
    (
        entry("batch-gradient-norm", batch_gradient_norm, BATCH_GRADIENT_NORM),
        entry("gradient-norm", gradient_norm, GRADIENT_NORM),
        entry("loss", loss, LOSS),
        entry("heldout-loss", heldout_loss, UNSEEN_LOSS, LOSS),
        entry("perplexity", perplexity, PERPLEXITY),
        entry("relative-perplexity", relative_perplexity, PERPLEXITY_RATIO),
        entry("cosine", cosine, GRADIENT_COSINE),
        entry("progress", progress, LOSS),
    )
)
"""Every global reward by name."""
