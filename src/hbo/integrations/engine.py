"""Balancing inside a Hugging Face trainer: what happens at each optimiser step, log and save."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hbo.balancer import Balancer, Update
from hbo.errors import ConfigError, StateError
from hbo.integrations.observer import BatchObserver, Stopwatch
from hbo.integrations.ranks import add_over_ranks, check_same_on_all_ranks, world
from hbo.mixture import FloatArray, IntArray
from hbo.observations import loss_signals
from hbo.runlog import RunLog
from hbo.signals import FIRST_LOSS, LOSS, PERPLEXITY, PERPLEXITY_RATIO, TOKENS

if TYPE_CHECKING:
    from hbo.measure.probe import Probe

STATE_KEY = "hbo"
SIGNAL_SOURCES = ("observed", "probe")
OBSERVABLE = frozenset({LOSS, FIRST_LOSS, PERPLEXITY, PERPLEXITY_RATIO, TOKENS})
MAX_LOGGED_SUBSETS = 64
"""With more, per-subset numbers go to the run log only: trackers choke on thousands of keys."""


@dataclass(frozen=True)
class BalanceOptions:
    """How a trainer is balanced; what is decided is the policy's business.

    Args:
        signals: ``"observed"``: losses come from the training batches, and only what they do not
            give is probed; ``"probe"``: everything is probed.
        lag: Optimiser steps between an update and the first draw made from it; ``None``:
            ``min(8, interval)``.
        unit: What shares count: ``"examples"`` or ``"tokens"``.
        probe_examples: Examples of each subset that one probe measures, spread over its groups.
        seed: Seed of the draws and probes; ``None``: the trainer's ``data_seed`` or ``seed``.
    """

    signals: str = "observed"
    lag: int | None = None
    unit: str = "examples"
    probe_examples: int = 8
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.signals not in SIGNAL_SOURCES:
            raise ConfigError(
                f"balance.signals is {self.signals!r}; allowed: {', '.join(SIGNAL_SOURCES)}"
            )
        if self.probe_examples < 1:
            raise ConfigError(f"balance.probe_examples is {self.probe_examples}; at least 1")


class Engine:
    """The balancer of one trainer, with its observer, probe, clock and run log.

    Args:
        make_balancer: Makes a fresh balancer; called again when training starts anew.
        options: See ``BalanceOptions``.
        probe: Measures what is not observed.
        run_log: Where events go.
    """

    def __init__(
        self,
        make_balancer: Callable[[], Balancer],
        options: BalanceOptions,
        probe: Probe,
        run_log: RunLog,
    ) -> None:
        self._make_balancer = make_balancer
        self.options = options
        self.probe = probe
        self.run_log = run_log
        self.clock = Stopwatch()
        self.observer = BatchObserver(self.clock, losses_needed=options.signals == "observed")
        self.balancer = make_balancer()
        self.probed = signals_to_probe(self.balancer.policy.needs, options.signals)
        self._last = self._position()

    def start(
        self,
        model: nn.Module,
        step: int,
        saved: Mapping[str, Any] | None,
        *,
        last_step: int | None = None,
    ) -> None:
        """Training begins, at step 0 or from a checkpoint.

        Args:
            model: The module whose forward gets the batches.
            step: Optimiser steps done.
            saved: What ``state_dict`` gave at that step.
            last_step: Optimiser steps of the whole run, where known.

        Raises:
            StateError: The checkpoint holds no balancing state, or another run's.
            ConfigError: ``max_passes`` does not leave enough draws until ``last_step``.
        """
        if step == 0:
            self.balancer, self.clock.seconds = self._make_balancer(), 0.0
        elif saved is None:
            raise StateError(
                f"the checkpoint at step {step} holds no balancing state; resume from one that a "
                "balanced run wrote, or start anew from its weights"
            )
        else:
            self.balancer.load_state_dict(saved["balancer"])
            self.clock.seconds = float(saved["balance_seconds"])
        self._last = self._position() if saved is None else _from_json(saved["last_log"])
        if last_step is not None:
            self.balancer.check_draws_left(max(last_step - step, 0))
        self.observer.watch(model)
        if step == 0 and self.balancer.due:
            with self.clock.running():
                self._decide(model)

    def stop(self) -> None:
        """Training ended: nothing of ours stays on the model."""
        self.observer.release()

    def finish_step(self, model: nn.Module) -> Update | None:
        """One optimiser step is done: take in what it showed, and decide if it is time.

        Raises:
            StateError: The trainer trained on other examples than the stream drew.
        """
        with self.clock.running():
            seen = self.observer.flush()
            expected = self.balancer.advance()
            if not np.isin(seen.example_ids, expected).all():
                raise StateError(
                    f"step {self.balancer.step} trained on examples that its draws do not contain; "
                    "another sampler replaced ours"
                )
            self.balancer.observations.train(seen.example_ids, seen.loss, seen.tokens)
            if self.options.signals == "observed":
                values = loss_signals(seen.loss, seen.first_loss) | {TOKENS: seen.tokens}
                self.balancer.observe(seen.example_ids, values)
            return self._decide(model) if self.balancer.due else None

    def _decide(self, model: nn.Module) -> Update:
        start = time.perf_counter()
        known = self._notes()
        self._measure(model)
        update = self.balancer.update(add_over_ranks)
        check_same_on_all_ranks(update.after, "sampling probabilities")
        taken = time.perf_counter() - start
        self.run_log.write("update", **_update_event(self.balancer, update, taken))
        for code, text in sorted(self._notes() - known):
            self.warn(code, text)
        return update

    def _notes(self) -> set[tuple[str, str]]:
        """What the policy's last update found worth a warning."""
        explanation = self.balancer.policy.explain(self.balancer.state)
        return {(code, text) for code, text in explanation.get("notes", ())}

    def _measure(self, model: nn.Module) -> None:
        wanted = self.probed & self.balancer.policy.needs_at(self.balancer.step)
        if not wanted:
            return
        rank, size = world()
        found = self.probe.measure(model, wanted, self.balancer.step, rank=rank, world_size=size)
        for name, (example_ids, values) in found.examples.items():
            self.balancer.observe(example_ids, {name: values})
        for name, column in found.whole.items():
            self.balancer.observe_whole(name, column)

    def warn(self, code: str, text: str) -> None:
        """Put a warning into the run log."""
        self.run_log.write("warning", step=self.balancer.step, code=code, text=text)

    def log_window(self) -> dict[str, float]:
        """Per-subset numbers since the last call: into the run log, and for the trainer's log."""
        with self.clock.running():
            self.balancer.observations.gather(add_over_ranks)
            before, self._last = self._last, self._position()
            window = {key: self._last[key] - before[key] for key in before}
            if not window["draws"].any():
                return {}
            self.run_log.write("step", **_step_event(self.balancer, window))
            if self.balancer.mixture.num_subsets > MAX_LOGGED_SUBSETS:
                return {}
            return _tracker_metrics(self.balancer, window)

    def _position(self) -> dict[str, FloatArray]:
        """(K,) running totals, whose differences are what a log window shows."""
        nats, tokens = self.balancer.observations.totals
        draws = self.balancer.draws.sum(axis=1).astype(np.float64)
        return {"nats": nats.copy(), "tokens": tokens.copy(), "draws": draws}

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint; all ranks call it together."""
        self.balancer.observations.gather(add_over_ranks)
        return {
            "balancer": self.balancer.state_dict(),
            "balance_seconds": self.clock.seconds,
            "last_log": {key: value.tolist() for key, value in self._last.items()},
        }

    def summary(self) -> dict[str, Any]:
        """The balancing part of ``summary.json``."""
        balancer = self.balancer
        mixture = balancer.mixture
        nats, tokens = balancer.observations.totals
        draws, sizes = balancer.draws, mixture.sizes
        # A cell is used up before it repeats: unseen is what is left of its first cycle.
        never_seen = np.maximum(sizes - draws, 0).sum(axis=1)
        columns = {
            "examples": mixture.subset_sizes,
            "draws": draws.sum(axis=1),
            "passes": draws.sum(axis=1) / mixture.subset_sizes,
            "never_seen": never_seen,
            "tokens": tokens.astype(np.int64),
            "train_loss": _ratio(nats, tokens),
        }
        return {
            "draws": int(draws.sum()),
            "tokens": int(tokens.sum()),
            "balance_seconds": self.clock.seconds,
            "stream_sha256": balancer.stream_sha256,
            "mixture_fingerprint": mixture.fingerprint,
            "probabilities": mixture.by_name(balancer.probabilities),
            "subsets": {
                name: {key: column[k].item() for key, column in columns.items()}
                for k, name in enumerate(mixture.names)
            },
        }


def signals_to_probe(needs: frozenset[str], source: str) -> frozenset[str]:
    """Which of a policy's signals have to be probed: all, or only what training does not show."""
    return needs - {TOKENS, FIRST_LOSS} if source == "probe" else needs - OBSERVABLE


def _from_json(saved: Mapping[str, Any]) -> dict[str, FloatArray]:
    return {key: np.asarray(value, dtype=np.float64) for key, value in saved.items()}


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    out = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _step_event(balancer: Balancer, window: Mapping[str, FloatArray]) -> dict[str, Any]:
    columns = zip(
        balancer.mixture.names,
        window["draws"].astype(np.int64).tolist(),
        window["tokens"].astype(np.int64).tolist(),
        window["nats"].tolist(),
        strict=True,
    )
    return {
        "step": balancer.step,
        "draws": int(balancer.draws.sum()),
        "loss": float(window["nats"].sum() / max(window["tokens"].sum(), 1.0)),
        "subsets": {
            name: {"draws": draws, "tokens": tokens, "loss": nats / tokens if tokens else None}
            for name, draws, tokens, nats in columns
        },
    }


def _tracker_metrics(balancer: Balancer, window: Mapping[str, FloatArray]) -> dict[str, float]:
    """Flat names for ``log_history``, the progress bar and any tracker."""
    loss = _ratio(window["nats"], window["tokens"])
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


def _update_event(balancer: Balancer, update: Update, seconds: float) -> dict[str, Any]:
    mixture, explanation = balancer.mixture, update.explanation
    both = {"before": update.before, "after": update.after}
    over_subsets = {key: law.sum(axis=1) for key, law in both.items()}
    inside = {key: _within_subsets(law, mixture.sizes) for key, law in both.items()}
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
            | {key: values[k].tolist() for key, values in inside.items()}
            for k, name in enumerate(mixture.names)
        },
        "seconds": seconds,
    }
