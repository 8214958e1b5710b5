"""Signals in: per-example gradient norms of the backward passes that training makes anyway."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.taps import NotApplicable, Scope, parameters_of
from hbo.measure.training_norms import Measured, TrainingNorms

if TYPE_CHECKING:
    from transformers import TrainingArguments

COST = 0.12
"""What norms add to a step of full fine-tuning, about, as a share of it (docs/performance.md)."""
STEPS_APART = 10
"""So that they add a hundredth to the whole."""
SMALL_SHARE = 0.1
"""Up to this share of trained parameters (adapters), norms cost next to nothing."""


class NormObserver:
    """Measures the gradient norms of some training steps; gives up, with a reason, where it cannot.

    Args:
        scope: Trained parameters that a norm covers.
        measured: Whether the optimiser step now in training is to be measured.
        clock: Counts what measuring costs.
    """

    def __init__(
        self,
        scope: Scope,
        measured: Callable[[], bool],
        clock: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._clock = clock
        self.given_up: str | None = None
        self._scope: Scope = scope
        self._wanted = measured
        self._norms: TrainingNorms | None = None
        self._measured: Measured | None = None
        self._pending: list[tuple[int, Measured | None]] = []

    def watch(self, model: nn.Module) -> None:
        """Find the layers of a model."""
        self.release()
        self._pending.clear()
        try:
            self._norms = TrainingNorms(model, self._scope, self._clock)
        except NotApplicable as error:
            self._give_up(error)

    def release(self) -> None:
        """The backward pass of the last micro-batch is over: nothing of ours stays on the model."""
        if self._norms is not None:
            self._norms.release()
        self._measured = None

    def begin(self, count: int, row_tokens: torch.Tensor | None) -> None:
        """A training micro-batch begins.

        Args:
            count: Its examples.
            row_tokens: (count,) tokens of each, where all are in one row.
        """
        self.release()
        if self._norms is not None and self._wanted():
            self._measured = self._norms.begin(count, row_tokens)

    def watch_output(self, output: Any, labels: torch.Tensor | None, count: int) -> None:
        """Its forward pass is over."""
        measured, self._measured = self._measured, None
        if measured is not None:
            try:
                measured.watch(output, labels)
            except NotApplicable as error:
                self._give_up(error)
                measured = None
        self._pending.append((count, measured))

    def flush(self) -> torch.Tensor:
        """(n,) norms of the examples seen since the last call, in order; NaN where not measured."""
        self.release()
        pending, self._pending = self._pending, []
        return torch.cat([self._values(count, part).cpu() for count, part in pending])

    def _values(self, count: int, part: Measured | None) -> torch.Tensor:
        if part is not None and self._norms is not None:
            try:
                return part.norms()
            except NotApplicable as error:
                self._give_up(error)
        return torch.full((count,), math.nan)

    def _give_up(self, error: NotApplicable) -> None:
        """All norms are unknown from now on; the reason stands in ``given_up``."""
        if self._norms is not None:
            self._norms.release()
            self._norms = None
        self.given_up = error.reason


def trains_adapters(model: nn.Module) -> bool:
    """Whether only adapters of PEFT, or another small part of a model, are trained."""
    trained_names = {name for name, p in model.named_parameters() if p.requires_grad}
    try:
        if trained_names == set(parameters_of(model, "adapters")):
            return True
    except ConfigError:  # it has none
        pass
    sizes = [(p.requires_grad, int(getattr(p, "ds_numel", p.numel()))) for p in model.parameters()]
    trained = sum(size for requires_grad, size in sizes if requires_grad)
    return trained <= SMALL_SHARE * sum(size for _, size in sizes)


def steps_apart(adapters: bool, interval: int) -> int:
    """One step in how many to measure, where nobody says.

    Args:
        adapters: Whether only a small part of the model is trained: then each.
        interval: Optimiser steps between updates, each of which should see some norms.

    Example:
        >>> steps_apart(False, 200), steps_apart(False, 5), steps_apart(True, 200)
        (10, 5, 1)
    """
    return 1 if adapters else min(STEPS_APART, interval)


def unmeasurable(args: TrainingArguments) -> str | None:
    """Why a trainer's arguments keep norms from being read off its training, if they do."""
    if args.label_smoothing_factor:
        return "label_smoothing_factor trains on another loss than that of the labels"
    if getattr(args, "loss_type", "nll") == "dft":
        return "loss_type 'dft' weighs the tokens of an example"
    if args.torch_compile:
        return "torch_compile would compile the model anew for each step that is measured"
    return None
