"""Per-example losses from what a training forward leaves behind, never off its mean loss."""

from __future__ import annotations

import torch
from torch.nn import functional

from hbo.measure.examples import IGNORED
from hbo.measure.forward import LOGITS_PER_CHUNK


def example_losses_from_log_probs(
    log_probs: torch.Tensor,
    label_mask: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    num_examples: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the loss of each example from per-token log-probabilities, as TRL's forward gives them.

    Sums over rows, not scattered additions: those come in any order on a GPU, and a run whose
    policy reads them could not be repeated.

    Args:
        log_probs: (B, T - 1) log-probability of each next token; what is masked may hold anything.
        label_mask: (B, T - 1) True where the next token is trained on.
        rows: (B, T - 1) number of the example each next token belongs to, where a row holds
            several; ``None``: one example a row.
        num_examples: Examples in the batch where ``rows`` is given; ``None``: largest row + 1.

    Returns:
        ``(sums, tokens)``, both (examples,): nats (fp32), and trained tokens (int64). Detached.

    Example:
        >>> sums, tokens = example_losses_from_log_probs(
        ...     torch.tensor([[-1.0, -2.0, -4.0]]), torch.tensor([[True, True, False]])
        ... )
        >>> sums.tolist(), tokens.tolist()
        ([3.0], [2])
    """
    mask = label_mask.bool()
    losses = torch.where(mask, -log_probs.detach().float(), 0.0)
    if rows is None:
        return losses.sum(dim=1), mask.sum(dim=1)
    count = int(rows.max()) + 1 if num_examples is None else num_examples
    numbers = torch.arange(count, device=losses.device).unsqueeze(1)
    owned = numbers == rows.reshape(1, -1).to(losses.device)
    sums = torch.where(owned, losses.reshape(1, -1), 0.0).sum(dim=1)
    return sums, (owned & mask.reshape(1, -1)).sum(dim=1)


def example_losses_from_logits(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    num_examples: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the loss of each example from a forward that kept its logits, as plain Transformers does.

    Only positions with a label are read, a chunk of them in fp32 at a time.

    Args:
        logits: (B, T, V) as the model gave them, not shifted.
        labels: (B, T), -100 where not trained on, not shifted.
        rows: As in ``example_losses_from_log_probs``.
        num_examples: As there.

    Returns:
        As there.

    Example:
        >>> sums, tokens = example_losses_from_logits(
        ...     torch.zeros(1, 3, 4), torch.tensor([[-100, 1, 2]])
        ... )
        >>> round(sums.item(), 4), tokens.tolist()  # 2 log 4
        (2.7726, [2])
    """
    targets = labels[:, 1:].to(logits.device)
    mask = targets != IGNORED
    log_probs = torch.zeros(mask.shape, dtype=torch.float32, device=logits.device)
    with torch.no_grad():
        for where in torch.split(mask.nonzero(), max(LOGITS_PER_CHUNK // logits.shape[-1], 1)):
            row, position = where.unbind(dim=1)
            log_probs[row, position] = -functional.cross_entropy(
                logits[row, position].float(), targets[row, position], reduction="none"
            )
    return example_losses_from_log_probs(log_probs, mask, rows=rows, num_examples=num_examples)
