"""Per-example gradient norms, read off the backward passes that training makes anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.examples import IGNORED
from hbo.measure.forward import bare_model
from hbo.measure.layer_norms import Layout
from hbo.measure.loss import example_losses_from_log_probs
from hbo.measure.taps import Coverage, Record, Scope, coverage_of, tap


class TrainingNorms:
    """Reads the gradient norm of each example while a micro-batch trains.

    Taps on the layers look at inputs and output gradients of the forward and backward passes that
    training makes (``hbo.measure.taps``); the gradients that training sums are the same bits with
    and without. A norm is that of the example's own mean loss, as in ``example_gradient_norms``:
    whatever the trainer multiplied its loss by (tokens of the global batch, accumulation, loss
    scaling, ranks) is read off the gradient that arrives at the losses, and divided out. It is the
    gradient that training follows, so of the weights before the step, with dropout on.

    Between ``begin`` and ``release`` the layers carry forward hooks; before and after, nothing. The
    hooks stay on through the backward pass, in which checkpointed layers run again.

    Args:
        model: The model in training; DistributedDataParallel and the like are looked through.
        scope: Which trained parameters the norm covers; ``all`` where embeddings or the output
            head are trained needs a head that runs as a module, which TRL's fused loss goes around.

    Raises:
        ConfigError: There is no rule for a layer of the model; or nothing is trained in the scope.

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

    def __init__(self, model: nn.Module, scope: Scope) -> None:
        self._coverage = coverage_of(bare_model(model), scope)
        self._handles: list[Any] = []

    def begin(self, num_examples: int, row_tokens: torch.Tensor | None = None) -> Measured:
        """Measure the next forward pass and its backward pass.

        Args:
            num_examples: Examples of the micro-batch, B: its rows.
            row_tokens: (B,) tokens of each example, where all are in one row (padding-free).
        """
        self.release()
        measured = Measured(self._coverage, num_examples, row_tokens)
        self._handles = tap(measured.record, self._coverage)
        return measured

    def release(self) -> None:
        """Take the hooks off, once the backward pass is over."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Measured:
    """The norms of one micro-batch, known when its backward pass is over."""

    def __init__(
        self, coverage: Coverage, num_examples: int, row_tokens: torch.Tensor | None
    ) -> None:
        self._rows: torch.Tensor | None = None
        self._count = num_examples
        layout = Layout(num_examples)
        if row_tokens is not None:
            layout = Layout.one_row(row_tokens)
            numbers = torch.arange(num_examples, device=row_tokens.device)
            self._rows = torch.repeat_interleave(numbers, row_tokens)[None, 1:]
        self.record = Record(coverage, layout)
        self._weights: torch.Tensor | None = None

    def watch(self, output: Any, labels: torch.Tensor | None = None) -> None:
        """Look out for the gradient that arrives at the losses of a training forward.

        That is, where the output has them, at TRL's ``log_probs``: it says what the trainer
        multiplied each token's loss by. Else at ``loss``, the mean that the model made of equally
        weighted losses, or, where the trainer makes its own, at ``logits``.

        Args:
            output: What the model's forward gave.
            labels: (B, T), where the output has no ``log_probs``.

        Raises:
            ConfigError: The output has none of them; or it has an auxiliary loss as well.
        """
        log_probs, loss = getattr(output, "log_probs", None), getattr(output, "loss", None)
        logits = getattr(output, "logits", None)
        if getattr(output, "aux_loss", None) is not None:
            raise ConfigError(
                "gradient norms of training cannot be told apart where an auxiliary loss (of a "
                "mixture of experts) joins the examples of a batch; set balance.signals to probe"
            )
        if log_probs is not None:
            mask = output.label_mask
            _on_gradient(log_probs, lambda gradient: self._weigh(gradient.float(), mask))
        elif logits is None or labels is None:
            raise ConfigError(
                "gradient norms of training need the log_probs or the logits of its forward; "
                "set balance.signals to probe"
            )
        else:
            self._watch_logits(loss, logits, labels)

    def norms(self) -> torch.Tensor:
        """(B,) fp32 norms; NaN for an example without a trained token.

        Raises:
            ConfigError: There is no rule for how a layer was called, or no backward pass came.
        """
        self.record.check_called()
        squares, weights = self.record.squares, self._weights
        if squares is None or weights is None:
            raise ConfigError("no backward pass came to the losses whose gradients were measured")
        return torch.where(weights == 0, torch.nan, squares.to(weights.device).sqrt() / weights)

    def _weigh(self, gradient: torch.Tensor, mask: torch.Tensor) -> None:
        """Sum over each example what its log-probabilities were multiplied by, negated."""
        rows = self._rows
        if rows is not None:  # -1: what a collator padded the row with
            rows = nn.functional.pad(rows, (0, mask.shape[1] - rows.shape[1]), value=-1)
        self._weights, _ = example_losses_from_log_probs(
            gradient, mask, rows=rows, num_examples=self._count
        )
        # A loss that is maximised would have negative weights; the norm is the same.
        self._weights = self._weights.abs()

    def _watch_logits(
        self, loss: torch.Tensor | None, logits: torch.Tensor, labels: torch.Tensor
    ) -> None:
        targets = labels[:, 1:].to(logits.device)
        mask = targets != IGNORED
        if loss is not None and loss.requires_grad:
            with torch.no_grad():
                total = _token_losses(logits, targets, mask).sum()
                each = loss.detach().float() / total
            _on_gradient(loss, lambda gradient: self._weigh(-gradient.float() * each * mask, mask))
            return
        kept = logits.detach()

        def weigh(gradient: torch.Tensor) -> None:
            # At a label's logit the gradient is weight x (its probability - 1).
            left = -torch.expm1(-_token_losses(kept, targets, mask)).sum()
            at_labels = gradient[:, :-1].gather(2, targets.clamp(min=0)[..., None])[..., 0].float()
            self._weigh((at_labels * mask).sum() / left * mask, mask)

        _on_gradient(logits, weigh)


def _on_gradient(tensor: torch.Tensor, look: Callable[[torch.Tensor], None]) -> None:
    tensor.register_hook(look)  # type: ignore[no-untyped-call]


def _token_losses(logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T - 1) fp32 losses, zero where masked."""
    losses = torch.zeros(mask.shape, dtype=torch.float32, device=logits.device)
    losses[mask] = nn.functional.cross_entropy(
        logits[:, :-1][mask].float(), targets[mask], reduction="none"
    )
    return losses
