"""Events of the run log and numbers for trackers, from a balancer and what a window showed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hbo.balancer import Balancer, Update
from hbo.mixture import FloatArray, IntArray, Mixture

MANY_SUBSETS = 64
"""With more, per-subset numbers go to the run log only: trackers choke on thousands of keys."""


def about_state(balancer: Balancer) -> dict[str, Any]:
    """What a checkpoint's balancing state is, for people; small enough to read."""
    mixture = balancer.mixture
    return {
        "step": balancer.step,
        "draws": balancer.position,
        "identity": balancer.identity,
        "probabilities": mixture.by_name(balancer.probabilities),
        "drawn": mixture.by_name(balancer.draws),
    }


def listed(mixture: Mixture, which: NDArray[np.bool_]) -> str:
    """Names of some subsets, the first few of many."""
    names = [name for name, wanted in zip(mixture.names, which, strict=True) if wanted]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def broken_losses(mixture: Mixture, counts: FloatArray) -> str:
    """Of a warning: how many losses of each subset were not finite."""
    return (
        f"{int(counts.sum())} examples had a loss that is not finite, and are in no reward and no "
        f"average: {listed(mixture, counts > 0)}"
    )


def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Element by element; NaN where the denominator is 0."""
    out = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def step_event(balancer: Balancer, window: Mapping[str, FloatArray]) -> dict[str, Any]:
    """The ``step`` event: what was trained on in a window, subset by subset.

    Of more than ``MANY_SUBSETS``, those that were drawn only.
    """
    columns = zip(
        balancer.mixture.names,
        window["draws"].astype(np.int64).tolist(),
        window["tokens"].astype(np.int64).tolist(),
        window["nats"].tolist(),
        strict=True,
    )
    everyone = balancer.mixture.num_subsets <= MANY_SUBSETS
    return {
        "step": balancer.step,
        "draws": balancer.position,
        "loss": float(window["nats"].sum() / max(window["tokens"].sum(), 1.0)),
        "subsets": {
            name: {"draws": draws, "tokens": tokens, "loss": nats / tokens if tokens else None}
            for name, draws, tokens, nats in columns
            if everyone or draws or tokens
        },
    }


def tracker_metrics(balancer: Balancer, window: Mapping[str, FloatArray]) -> dict[str, float]:
    """Flat names for ``log_history``, the progress bar and any tracker."""
    loss = ratio(window["nats"], window["tokens"])
    share = window["draws"] / window["draws"].sum()
    target = balancer.probabilities.sum(axis=1)
    passes = balancer.draws.sum(axis=1) / balancer.mixture.subset_sizes
    metrics: dict[str, float] = {}
    for k, name in enumerate(balancer.mixture.names):
        if window["tokens"][k] > 0:
            metrics[f"mixture/{name}/loss"] = round(float(loss[k]), 4)
        metrics[f"mixture/{name}/tokens"] = int(window["tokens"][k])
        metrics[f"mixture/{name}/share"] = round(float(share[k]), 4)
        metrics[f"mixture/{name}/probability"] = round(float(target[k]), 4)
        metrics[f"mixture/{name}/passes"] = round(float(passes[k]), 3)
    return metrics


def _within_subsets(law: FloatArray, sizes: IntArray) -> FloatArray:
    """(K, G) probability of a group given its subset; by size in a subset that is not drawn."""
    drawn = law.sum(axis=1, keepdims=True) > 0
    shown = np.where(drawn, law, sizes)
    return np.asarray(shown / shown.sum(axis=1, keepdims=True), dtype=np.float64)


def update_event(balancer: Balancer, update: Update, seconds: float) -> dict[str, Any]:
    """The ``update`` event: rewards, probabilities before and after, and what was asked for."""
    mixture, explanation = balancer.mixture, update.explanation
    both = {"before": update.before, "after": update.after}
    over_subsets = {key: law.sum(axis=1) for key, law in both.items()}
    inside = {key: _within_subsets(law, mixture.sizes).tolist() for key, law in both.items()}
    rewards = {
        level: {
            key: (explanation.get(level) or {}).get(key) or [None] * mixture.num_subsets
            for key in ("rewards", "errors")
        }
        for level in ("global", "local")
    }
    return {
        "step": update.step,
        "effective_draw": update.effective_draw,
        "global": {key: mixture.by_name(values) for key, values in rewards["global"].items()}
        | {key: mixture.by_name(values) for key, values in over_subsets.items()},
        "local": {
            name: {key: values[k] for key, values in rewards["local"].items()}
            | {key: rows[k] for key, rows in inside.items()}
            for k, name in enumerate(mixture.names)
        },
        "proposed": {
            when: mixture.by_name(law)
            for when, law in zip(("before", "after"), update.proposed, strict=True)
        },
        "seconds": seconds,
    }
