"""Difficulty metrics: from what a model says of each response to one number, higher is harder."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hbo.errors import ConfigError, DataError
from hbo.mixture import FloatArray


@dataclass(frozen=True, eq=False)
class ResponseStatistics:
    """What the scoring model says of each example's response.

    Args:
        loss: (N,) mean of -log p(token | prompt, tokens before) over response tokens; nats per
            token, NaN where it could not be measured.
        alone_loss: (N,) the same without the prompt; ``None`` where no metric needed it.
        response_tokens: (N,) response tokens the means are over.

    Raises:
        DataError: The three do not have one value per example.
    """

    loss: FloatArray
    alone_loss: FloatArray | None
    response_tokens: FloatArray

    def __post_init__(self) -> None:
        fields = ["loss", "response_tokens"] + ["alone_loss"] * (self.alone_loss is not None)
        for name in fields:
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 1 or values.shape != np.shape(self.loss):
                raise DataError(
                    f"response statistics need one {name} per example: "
                    f"shape {values.shape} for losses of shape {np.shape(self.loss)}"
                )

    def __len__(self) -> int:
        return len(self.loss)


def ifd(statistics: ResponseStatistics) -> FloatArray:
    """Instruction-following difficulty as a ratio of perplexities: how little the prompt helps.

    With L = ``loss`` and A = ``alone_loss`` of an example::

        IFD = PPL(y | x) / PPL(y) = exp(L - A)

    The form of Superfiltering (arXiv 2402.00530), and the one the HBO paper names for its groups.
    1 means that the prompt does not help to predict the response. Superfiltering drops examples
    above 1, often mismatched pairs; here, as in HBO, they stay and are the hardest. The ratio of
    mean losses (``ifd_loss``) orders examples differently.

    Returns:
        (N,) at least 0. Infinite where the ratio is beyond floating point; NaN where a loss is NaN
        or both are infinite.

    Raises:
        ConfigError: ``alone_loss`` was not measured.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.exp(statistics.loss - _alone(statistics, "ifd"))


def ifd_loss(statistics: ResponseStatistics) -> FloatArray:
    """Instruction-following difficulty as a ratio of mean losses.

    With L = ``loss`` and A = ``alone_loss`` of an example::

        IFD = L / A

    The form of Cherry (arXiv 2308.12032), its s(A|Q) / s(A). Cherry drops examples above 1; here
    they stay and are the hardest.

    Returns:
        (N,) at least 0. Where A is 0: infinite if L is positive, and 1, "the prompt does not help",
        if both are 0. NaN where a loss is NaN or both are infinite.

    Raises:
        ConfigError: ``alone_loss`` was not measured.
    """
    alone = _alone(statistics, "ifd-loss")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = statistics.loss / alone
    return np.where((statistics.loss == 0) & (alone == 0), 1.0, ratio)


def perplexity(statistics: ResponseStatistics) -> FloatArray:
    """Perplexity of the response given the prompt, exp(L) (arXiv 2505.12300, section 3.2).

    Returns:
        (N,) at least 1; infinite where exp(L) is beyond floating point (L over 709 nats per token).
    """
    with np.errstate(over="ignore"):
        return np.exp(statistics.loss)


def loss(statistics: ResponseStatistics) -> FloatArray:
    """Mean loss of the response given the prompt: same order as ``perplexity``, never infinite.

    Returns:
        (N,) nats per response token.
    """
    return statistics.loss.copy()


def length(statistics: ResponseStatistics) -> FloatArray:
    """Number of response tokens: needs no model to be sensible, and is a baseline for the others.

    Returns:
        (N,) tokens.
    """
    return statistics.response_tokens.copy()


METRICS: dict[str, Callable[[ResponseStatistics], FloatArray]] = {
    "ifd": ifd,
    "ifd-loss": ifd_loss,
    "perplexity": perplexity,
    "loss": loss,
    "length": length,
}

NEEDS_ALONE = frozenset({"ifd", "ifd-loss"})
"""Metrics that need the second pass, over responses without their prompts."""


def difficulty_scores(metric: str, statistics: ResponseStatistics) -> FloatArray:
    """Scores of all examples by the metric of that name.

    Args:
        metric: A name in ``METRICS``.
        statistics: Of N examples.

    Returns:
        (N,) higher is harder; NaN where nothing could be measured.

    Raises:
        ConfigError: No metric has that name, or it needs ``alone_loss`` and there is none.

    Example:
        >>> seen = ResponseStatistics(np.log([2.0, 8.0]), np.log([4.0, 4.0]), np.array([3, 5]))
        >>> difficulty_scores("ifd", seen).round(3).tolist()
        [0.5, 2.0]
        >>> difficulty_scores("ifd-loss", seen).round(3).tolist()
        [0.5, 1.5]
    """
    if metric not in METRICS:
        near = difflib.get_close_matches(metric, METRICS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"difficulty.metric {metric!r} is unknown; "
            f"one of {', '.join(METRICS)}, column:NAME{hint}"
        )
    return METRICS[metric](statistics)


def _alone(statistics: ResponseStatistics, metric: str) -> FloatArray:
    if statistics.alone_loss is None:
        raise ConfigError(
            f"difficulty metric {metric!r} needs the loss of each response without its prompt; "
            "score again with the response-alone pass"
        )
    return statistics.alone_loss
