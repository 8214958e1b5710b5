"""Per-example gradient norms, read off the backward passes that training makes anyway."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
from torch import nn

from hbo.measure.examples import IGNORED
from hbo.measure.forward import bare_model
from hbo.measure.layer_norms import Layout
from hbo.measure.loss import example_losses_from_logits
from hbo.measure.sharding import Sharding, sharding_of
from hbo.measure.taps import Coverage, NotApplicable, Record, Scope, coverage_of, tap

TOKENS_SEEN = 32
"""Tokens of a micro-batch at whose logits the kind of the loss is looked at."""
ANOTHER_LOSS = (
    "the loss is another than the sum of the labels' own, all weighed alike (label smoothing?)"
)
UNEVEN = "the loss weighs the tokens of an example differently"
FIRST_TOKEN = "the first token of an example is trained on, as the next one of the example before"


class TrainingNorms:
    """Reads the gradient norm of each example while a micro-batch trains.

    Taps on the layers look at inputs and output gradients of the forward and backward passes that
    training makes (``hbo.measure.taps``); the gradients that training sums are the same bits with
    and without. A norm is that of the example's own mean loss, as in ``example_gradient_norms``:
    whatever the trainer multiplied its loss by (tokens of the global batch, accumulation, loss
    scaling, ranks) is read off the gradient that arrives at the losses, and divided out. It is the
    gradient that training follows, so of the weights before the step, with dropout on.

    In fp32 a norm is right to the rounding of the model's own passes: for SmolLM2-135M within 1e-5
    of fp64, where one backward pass an example is within 1e-4. In bf16 it is off as any backward
    pass is: there 1 % (rms; 2 % at most) under autocast, 2 % (6 %) with weights in bf16.

    Between ``begin`` and ``release`` the layers carry forward hooks; before and after, nothing. The
    hooks stay on through the backward pass, in which checkpointed layers run again.

    Args:
        model: The model in training; DistributedDataParallel and the like are looked through.
        scope: Which trained parameters the norm covers; ``all`` where embeddings or the output
            head are trained needs a head that runs as a module, which TRL's fused loss goes around.
        clock: Opened around what is done here inside a backward pass, for those who count it.

    Raises:
        NotApplicable: There is no rule for a layer of the model. Some of what there is none for
            shows only as the model runs: ``Measured`` says so.
        ConfigError: Nothing is trained in the scope.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(
        ...     hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        ... )
        >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes))
        >>> ids = torch.tensor([[1, 2, 3], [3, 2, 1]])
        >>> norms = TrainingNorms(model, "blocks")
        >>> measured = norms.begin(2)
        >>> output = model(input_ids=ids, labels=ids)
        >>> measured.watch(output, ids)
        >>> output.loss.backward()
        >>> norms.release()
        >>> measured.norms().shape
        torch.Size([2])
    """

    def __init__(
        self,
        model: nn.Module,
        scope: Scope,
        clock: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._clock = clock
        model = bare_model(model)
        kind = sharding_of(model)
        if kind in (Sharding.FSDP1, Sharding.ZERO3):
            raise NotApplicable(f"parameters lie in buffers of their own under {kind.value}")
        # Public is only what sets it: ``model.compile()``, or the wrapper of ``torch.compile``.
        if any(part._compiled_call_impl is not None for part in model.modules()) or hasattr(
            model, "_orig_mod"
        ):
            raise NotApplicable("the model is compiled, and would be anew for a measured step")
        self._coverage = coverage_of(model, scope)
        self._handles: list[Any] = []
        self._measured: Measured | None = None

    def begin(
        self,
        num_examples: int,
        row_tokens: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
    ) -> Measured:
        """Measure the next forward pass and its backward pass.

        Args:
            num_examples: Examples of the micro-batch, B: its rows.
            row_tokens: (B,) tokens of each example, where a row holds several that do not see each
                other (padding-free, packed): one after the other, from the row's first token on.
            rows: (B,) the row of each, not descending; ``None``: all are in one.
        """
        self.release()
        layout = Layout(num_examples) if row_tokens is None else Layout.packed(row_tokens, rows)
        self._measured = Measured(self._coverage, layout, self._clock)
        self._handles = tap(self._measured.record, self._coverage)
        return self._measured

    def release(self) -> None:
        """Take the hooks off, once the backward pass is over."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._measured is not None:
            self._measured.record.forget()
            self._measured = None


class Measured:
    """The norms of one micro-batch, known when its backward pass is over."""

    def __init__(
        self,
        coverage: Coverage,
        layout: Layout,
        clock: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.record = Record(coverage, layout, clock=clock)
        self._layout = layout
        self._weights: torch.Tensor | None = None
        self._weight: torch.Tensor | None = None
        self._doubts: list[tuple[torch.Tensor, str]] = []

    def watch(self, output: Any, labels: torch.Tensor | None = None) -> None:
        """Look out for the gradient that arrives at the losses of a training forward.

        It says what the trainer multiplied each token's loss by. It arrives, where the output has
        them, at TRL's ``log_probs``; else at ``logits`` and, where the model made its own, at
        ``loss``. At ``logits`` a few tokens show as well whether it is a loss of the labels alone
        (without label smoothing, say) that weighs all tokens alike. Where all that is seen is
        ``loss`` (accelerate hands out a copy of the logits in fp32), it is believed to be so.

        Args:
            output: What the model's forward gave.
            labels: (B, T), where the output has no ``log_probs``.

        Raises:
            NotApplicable: The output has none of them, or not for each token; or it has an
                auxiliary loss as well; or there was no rule for how a layer was called.
        """
        self.record.check()
        log_probs, logits = getattr(output, "log_probs", None), getattr(output, "logits", None)
        if getattr(output, "aux_loss", None) is not None:
            raise NotApplicable(
                "an auxiliary loss (of a mixture of experts) joins the examples of a batch"
            )
        if _has_gradient(log_probs):
            self._watch_log_probs(log_probs, getattr(output, "label_mask", None))
        elif _has_gradient(logits) and labels is not None:
            self._watch_logits(getattr(output, "loss", None), logits, labels)
        else:
            raise NotApplicable(
                "its forward gave no log_probs, and no logits beside labels, that a gradient flows "
                "back to"
            )

    def norms(self) -> torch.Tensor:
        """(B,) fp32 norms; NaN for an example without a trained token, and for an infinite one.

        Raises:
            NotApplicable: There is no rule for how a layer was called, or for the loss; or no
                backward pass came, or two.
        """
        self.record.check_called()
        squares, weights = self.record.squares, self._weights
        if squares is None or weights is None:
            raise NotApplicable("no backward pass came to the losses that were watched")
        self.record.check_measured()
        for doubtful, reason in self._doubts:
            if doubtful:
                raise NotApplicable(reason)
        norms = squares.to(weights.device).sqrt() / weights
        # Infinite too where a loss scale was too large, and training skips the step.
        return torch.where(norms.isfinite(), norms, torch.nan)

    def _watch_log_probs(self, log_probs: torch.Tensor, mask: torch.Tensor | None) -> None:
        if mask is None or mask.shape != log_probs.shape or not self._layout.holds(log_probs, 1):
            raise NotApplicable("its log_probs are not one for each next token of the batch")
        mask = mask.bool()
        _on_gradient(log_probs, lambda gradient: self._weigh(gradient.float() * mask, mask))

    def _watch_logits(
        self, loss: torch.Tensor | None, logits: torch.Tensor, labels: torch.Tensor
    ) -> None:
        if logits.shape[:-1] != labels.shape or not self._layout.holds(logits):
            raise NotApplicable("its logits are not one row of the vocabulary for each label")
        targets = labels[:, 1:].to(logits.device)
        mask = targets != IGNORED
        if _has_gradient(loss):
            sums, _ = example_losses_from_logits(logits, labels)
            each = loss.detach().float() / sums.sum()

            def look(gradient: torch.Tensor) -> None:
                self._weight = gradient.float() * each
                self._weigh(self._weight * mask, mask)

            _on_gradient(loss, look)
        self._watch_tokens(logits, targets, mask)

    def _watch_tokens(
        self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """At logits the gradient of the loss of a label is weight x (probabilities - label)."""
        seen = mask.nonzero()
        if not len(seen):
            self._weights = torch.zeros(self._layout.count, device=logits.device)
            return
        row, place = seen[:: -(-len(seen) // TOKENS_SEEN)].unbind(dim=1)
        with torch.no_grad():
            expected = logits[row, place].float().softmax(dim=-1)
            expected[torch.arange(len(row), device=row.device), targets[row, place]] -= 1

        def look(gradient: torch.Tensor) -> None:
            found = gradient[row, place].float()
            if (weight := self._weight) is None:
                weight = (found * expected).sum() / expected.square().sum()
                self._weigh(weight * mask, mask)
            left = (found - weight * expected).norm()
            exact = gradient.dtype in (torch.float32, torch.float64)
            tolerance = 1e-3 if exact else 3e-2
            self._doubts.append((left > tolerance * found.norm(), ANOTHER_LOSS))

        _on_gradient(logits, look)

    def _weigh(self, gradient: torch.Tensor, mask: torch.Tensor) -> None:
        """Sum over each example what the losses of its tokens (B, T - 1) are multiplied by."""
        weights, counted = (
            self._layout.take(nn.functional.pad(part, (1, 0))) for part in (gradient, mask)
        )
        total = weights.sum(dim=1)
        mean = (total / counted.sum(dim=1))[:, None]
        uneven = ((weights - mean).abs() > 1e-2 * mean.abs()) & counted
        self._doubts += [(uneven.any(), UNEVEN), (counted[:, 0].any(), FIRST_TOKEN)]
        # A loss that is maximised would have negative weights; the norm is the same.
        self._weights = total.abs()


def _has_gradient(tensor: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(tensor, torch.Tensor) and tensor.requires_grad


def _on_gradient(tensor: torch.Tensor, look: Callable[[torch.Tensor], None]) -> None:
    tensor.register_hook(look)  # type: ignore[no-untyped-call]
