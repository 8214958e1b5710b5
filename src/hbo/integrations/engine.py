"""Balancing inside a Hugging Face trainer: what happens at each optimiser step, log and save."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from hbo.balancer import Balancer, Update
from hbo.errors import StateError
from hbo.identity import ANEW, OtherRunError, check_identity
from hbo.integrations.events import (
    MANY_SUBSETS,
    broken_losses,
    listed,
    ratio,
    step_event,
    tracker_metrics,
    update_event,
)
from hbo.integrations.observed_norms import NormObserver, steps_apart, trains_adapters
from hbo.integrations.observer import BatchObserver, Stopwatch
from hbo.integrations.options import BalanceOptions
from hbo.integrations.ranks import add_over_ranks, check_same_on_all_ranks, world
from hbo.integrations.top_up import lacking, signals_to_probe
from hbo.measure.forward import bare_model
from hbo.measure.taps import parameters_of
from hbo.mixture import FloatArray
from hbo.observations import loss_signals
from hbo.policies import check_recording
from hbo.policies.actor import BoolArray
from hbo.runlog import RunLog
from hbo.signals import GRADIENT_NORM, HELDOUT_SIGNALS, TOKENS

if TYPE_CHECKING:
    from hbo.measure.probe import Probe

LOST_STEPS = 3
"""After so many steps without one finite loss, a training is lost: NaN weights do not heal."""
logger = logging.getLogger(__name__)


class Engine:
    """The balancer of one trainer, with its observer, probe, clock and run log.

    Args:
        make_balancer: Makes a fresh balancer; called again when training starts anew.
        options: See ``BalanceOptions``.
        probe: Measures what is not observed.
        run_log: Where events go.
        first_losses: (K,) mean losses of the subsets under the untouched model, where known.
        unmeasurable: Why norms cannot be read off this training; ``None``: perhaps they can.

    Raises:
        ConfigError: The policy needs what this probe cannot measure.
    """

    def __init__(
        self,
        make_balancer: Callable[[], Balancer],
        options: BalanceOptions,
        probe: Probe,
        run_log: RunLog,
        *,
        first_losses: FloatArray | None = None,
        unmeasurable: str | None = None,
    ) -> None:
        self._make_balancer = make_balancer
        self.options = options
        self.probe = replace(probe, scope=options.scope)
        self.run_log = run_log
        self.clock = Stopwatch()
        self.observer = BatchObserver(self.clock, losses_needed=options.observed)
        self.balancer = make_balancer()
        check_recording(self.balancer.policy, self.balancer.mixture.names)
        self.probed = signals_to_probe(self.balancer.policy.needs, options.signals)
        self.probe.check_settings(self.probed)
        self._unmeasurable = unmeasurable
        self._norms_probed: str | None = None
        self._measure_every = 0
        self._at_log = self._at_update = self._position()
        self._first_losses = first_losses
        self._lost_steps = 0

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
            saved: What ``state_dict`` gave at that step; ``None``: a checkpoint of a training that
                was not balanced, where balancing begins now.
            last_step: Optimiser steps of the whole run, where known.

        Raises:
            StateError: The checkpoint holds another run's balancing state, or a damaged one.
            ConfigError: ``max_passes`` does not leave enough draws until ``last_step``, or the
                policy needs probes that this kind of sharding does not allow.
        """
        begins = step == 0 or not self._goes_on(saved)
        if begins:
            self._norms_probed = None
            self.balancer, self.clock.seconds = self._make_balancer(), 0.0
            self.balancer.begin_at(step)
            self._at_log = self._at_update = self._position()
        self._lost_steps = 0
        self.probed = signals_to_probe(self.balancer.policy.needs, self.options.signals)
        if step and begins:
            self.warn("balancing-begins", f"balancing begins at step {step}, with its first draw")
        if last_step is not None:
            self.balancer.check_draws_left(max(last_step - step, 0))
        self._watch(model)
        if begins and self.balancer.policy.update_at_start:
            with self.clock.running():
                self._decide(model)

    def _watch(self, model: nn.Module) -> None:
        """Hook the model, and find out whether its norms can be observed."""
        needs = self.balancer.policy.needs
        if GRADIENT_NORM in needs:
            parameters_of(bare_model(model), self.options.scope)  # else nothing is to be measured
        norms = None
        if self._norms_probed is not None:  # of the run that this one goes on from
            self.probed |= {GRADIENT_NORM}
        elif GRADIENT_NORM in needs - self.probed:
            norms = NormObserver(self.options.scope, self._measures_now, self.clock.running)
        self._measure_every = self.options.measure_every or steps_apart(
            trains_adapters(model), self.balancer.policy.interval
        )
        self.observer.watch(model, norms)
        if norms is not None and (reason := self._unmeasurable or norms.given_up) is not None:
            self._probe_norms(reason)
        self.probe.check(model, self.probed)

    def _measures_now(self) -> bool:
        """Whether the step now in training shows its norms."""
        return (self.balancer.step + 1) % self._measure_every == 0

    def _agree_on_norms(self) -> None:
        """Probe norms on all ranks from now on if one of them cannot observe them any more."""
        if GRADIENT_NORM not in self.balancer.policy.needs - self.probed:
            return
        reason = self.observer.norms_given_up
        if add_over_ranks(np.array([float(reason is not None)])).any():
            self._probe_norms(reason or "another rank could not read them off its training")

    def _probe_norms(self, reason: str) -> None:
        """From now on, since they cannot be observed; said once."""
        self.probed |= {GRADIENT_NORM}
        self._norms_probed = reason
        self.observer.without_norms()
        self.warn("norms-probed", f"gradient norms are probed: {reason}")

    def _goes_on(self, saved: Mapping[str, Any] | None) -> bool:
        """Take over a checkpoint's state; whether there was one to go on from."""
        if saved is None:
            return False
        try:
            self.check_state(saved)
            self.balancer.load_state_dict(saved["balancer"])
            self._norms_probed = saved["norms_probed"]
        except OtherRunError:
            if self.options.resume == "exact":
                raise
            return False
        self.clock.seconds = float(saved["balance_seconds"])
        self._at_log, self._at_update = (_from_json(saved["marks"][at]) for at in ("log", "update"))
        before, now = saved["balancer"]["draws_per_step"], self.balancer.draws_per_step
        if before != now:
            text = f"a step draws {now} examples now, {before} before the resume"
            self.warn("global-batch", text)
        return True

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Refuse a checkpoint's state that is another run's; nothing is changed.

        Raises:
            OtherRunError: It is of another mixture, policy, setting or untouched model.
        """
        check_identity(saved["balancer"], self.balancer.identity)
        for key, ours in self._measured_by().items():
            theirs = saved["measured_by"][key]
            if theirs != ours:
                what = "set of held-out examples" if key == "heldout" else f"balance.{key}"
                raise OtherRunError(
                    f"the checkpoint was written with another {what} ({theirs!r}, here {ours!r}); "
                    f"give the same, or {ANEW}"
                )
        first = saved["first_losses"]
        if first is None or self._first_losses is None:
            return
        theirs_first = np.asarray(first, dtype=np.float64)
        if not np.allclose(theirs_first, self._first_losses, rtol=1e-3, equal_nan=True):
            raise OtherRunError(
                "the checkpoint's rewards refer to another untouched model: the losses under it "
                f"have changed; give the same model, or {ANEW}"
            )

    def _measured_by(self) -> dict[str, Any]:
        """What the rewards are measured on: options, and held-out examples."""
        found = self.options.measured_by(self.probed)
        if self.probed & HELDOUT_SIGNALS:
            found["heldout"] = self.probe.heldout_fingerprint
        return found

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
            lost = (seen.tokens > 0).any() and not np.isfinite(seen.loss).any()
            self._lost_steps = self._lost_steps + 1 if lost else 0
            if self.options.observed:
                values = loss_signals(seen.loss, seen.first_loss)
                values |= {TOKENS: seen.tokens, GRADIENT_NORM: seen.norms}
                self.balancer.observe(seen.example_ids, values)
            return self._decide(model) if self.balancer.due else None

    def _decide(self, model: nn.Module) -> Update:
        start = time.perf_counter()
        known = self._notes()
        self._measure(model)
        update = self.balancer.update(add_over_ranks)
        check_same_on_all_ranks(update.after, "sampling probabilities")
        since, self._at_update = self._at_update, self._position()
        interval = self._since(since)
        self._check_alive(interval)
        silent = (interval["draws"] > 0) & (interval["tokens"] + interval["broken"] == 0)
        # Where losses are probed because the model hides them, no subset shows any.
        shown = self.options.observed or interval["tokens"].any()
        if shown and silent.any():
            names = listed(self.balancer.mixture, silent)
            self.warn("no-tokens", f"no trained token since the last update: {names}")
        taken = time.perf_counter() - start
        self.run_log.write("update", **update_event(self.balancer, update, taken))
        for code, text in sorted(self._notes() - known):
            self.run_log.write("warning", step=update.step, code=code, text=text)
        return update

    def _notes(self) -> set[tuple[str, str]]:
        """What the policy's last update found worth a warning."""
        explanation = self.balancer.policy.explain(self.balancer.state)
        return {(code, text) for code, text in explanation.get("notes", ())}

    def _measure(self, model: nn.Module) -> None:
        """Probe what training did not show: whole signals, and cells that it showed too little."""
        wanted = self.balancer.policy.needs_at(self.balancer.step)
        self._agree_on_norms()
        if wanted & self.probed:
            self._probe(model, wanted & self.probed)
        if not wanted - self.probed:
            return
        self.balancer.observations.gather(add_over_ranks)
        began = self.balancer.step > 0  # else there is no training to take a share of
        share, observed = self.options.top_up if began else math.inf, wanted - self.probed
        for names, cells in lacking(self.balancer, self.probe, model, observed, share):
            self._probe(model, names, cells)

    def _probe(
        self, model: nn.Module, wanted: frozenset[str], cells: BoolArray | None = None
    ) -> None:
        rank, size = world()
        found = self.probe.measure(
            model, wanted, self.balancer.step, cells=cells, rank=rank, world_size=size
        )
        for name, (example_ids, values) in found.examples.items():
            self.balancer.observe(example_ids, {name: values})
        for name, column in found.whole.items():
            self.balancer.observe_whole(name, column)

    def _check_alive(self, window: Mapping[str, FloatArray]) -> None:
        """Stop a training that has no finite loss any more; all ranks see the same window.

        Raises:
            StateError: The last ``LOST_STEPS`` steps or more had none on any rank.
        """
        if not window["broken"].any():
            return
        alive = add_over_ranks(np.array([float(self._lost_steps < LOST_STEPS)]))
        if not alive.any():
            step = self.balancer.step
            raise StateError(
                f"training is lost: not one finite loss in steps {step - self._lost_steps + 1} to "
                f"{step}; "
                "resume with a lower training.learning_rate from a checkpoint before that "
                "(those with NaN weights are passed over)"
            )

    def warn(self, code: str, text: str) -> None:
        """Put a warning into the run log, and say it."""
        self.run_log.write("warning", step=self.balancer.step, code=code, text=text)
        if world()[0] == 0:
            logger.warning(text)

    def log_window(self) -> dict[str, float]:
        """Per-subset numbers since the last call: into the run log, and for the trainer's log."""
        with self.clock.running():
            self.balancer.observations.gather(add_over_ranks)
            since, self._at_log = self._at_log, self._position()
            window = self._since(since)
            if not window["draws"].any():
                return {}
            self._check_alive(window)
            if window["broken"].any():
                self.warn("loss-not-finite", broken_losses(self.balancer.mixture, window["broken"]))
            self.run_log.write("step", **step_event(self.balancer, window))
            if self.balancer.mixture.num_subsets > MANY_SUBSETS:
                return {}
            return tracker_metrics(self.balancer, window)

    def _position(self) -> dict[str, FloatArray]:
        """(K,) running totals, whose differences are what a log window shows."""
        names = ("nats", "tokens", "broken")
        totals = dict(zip(names, self.balancer.observations.totals, strict=True))
        return totals | {"draws": self.balancer.draws.sum(axis=1).astype(np.float64)}

    def _since(self, before: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """What came to the running totals since then."""
        return {key: value - before[key] for key, value in self._position().items()}

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint; all ranks call it together."""
        self.balancer.observations.gather(add_over_ranks)
        self._agree_on_norms()
        return {
            "norms_probed": self._norms_probed,
            "balancer": self.balancer.state_dict(),
            "balance_seconds": self.clock.seconds,
            "measured_by": self._measured_by(),
            "first_losses": None if self._first_losses is None else self._first_losses.tolist(),
            "marks": {"log": _to_json(self._at_log), "update": _to_json(self._at_update)},
        }

    def summary(self) -> dict[str, Any]:
        """The balancing part of ``summary.json``."""
        balancer = self.balancer
        mixture = balancer.mixture
        nats, tokens, _broken = balancer.observations.totals
        draws, sizes = balancer.draws, mixture.sizes
        # A cell is used up before it repeats: unseen is what is left of its first cycle.
        never_seen = np.maximum(sizes - draws, 0).sum(axis=1)
        columns = {
            "examples": mixture.subset_sizes,
            "draws": draws.sum(axis=1),
            "passes": draws.sum(axis=1) / mixture.subset_sizes,
            "never_seen": never_seen,
            "tokens": tokens.astype(np.int64),
            "train_loss": ratio(nats, tokens),
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


def _to_json(totals: Mapping[str, FloatArray]) -> dict[str, list[float]]:
    return {key: value.tolist() for key, value in totals.items()}


def _from_json(saved: Mapping[str, Any]) -> dict[str, FloatArray]:
    return {key: np.asarray(value, dtype=np.float64) for key, value in saved.items()}
