"""Examples and oracles that the tests of this folder share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hbo.measure.examples import IGNORED, Encoded

VOCABULARY = 259


def random_example(
    generator: np.random.Generator, prompt: int, response: int, alone: bool = True
) -> Encoded:
    ids = generator.integers(0, VOCABULARY, prompt + response).astype(np.int32)
    labels = ids.copy()
    labels[:prompt] = IGNORED
    if not alone:
        return Encoded(ids, labels)
    header = min(prompt, 2)
    alone_labels = labels[prompt - header :].copy()
    return Encoded(ids, labels, ids[prompt - header :], alone_labels)


def random_examples(count: int, seed: int = 0, longest: int = 30) -> list[Encoded]:
    generator = np.random.default_rng(seed)
    return [
        random_example(
            generator, int(generator.integers(1, longest)), int(generator.integers(1, 9))
        )
        for _ in range(count)
    ]


def random_heldout(subsets: int, seed: int = 7, count: int = 5) -> list[list[Encoded]]:
    """Held-out examples of each subset, fewer of each than of the one before."""
    return [random_examples(max(count - k, 2), seed + k) for k in range(subsets)]


def two_turns(seed: int = 0) -> Encoded:
    """Prompt, response, prompt, response: labels in two pieces."""
    first, second = random_examples(2, seed)
    return Encoded(
        np.concatenate([first.input_ids, second.input_ids]),
        np.concatenate([first.labels, second.labels]),
    )


def naive_loss(model: nn.Module, example: Encoded) -> torch.Tensor:
    """Mean loss of one example the plain way: all logits, one row, no padding."""
    ids = torch.as_tensor(np.asarray(example.input_ids, dtype=np.int64))[None]
    labels = torch.as_tensor(np.asarray(example.labels, dtype=np.int64))[None]
    log_probs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(dim=-1)
    mask = labels[:, 1:] != IGNORED
    picked = log_probs[:, :-1].gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return -picked[mask].mean()


def naive_losses(model: nn.Module, examples: list[Encoded]) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return np.array([naive_loss(model, example).item() for example in examples])


CUDA_FULL = torch.OutOfMemoryError("CUDA out of memory")
CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")


def out_of_memory_above(
    model: nn.Module, tokens: int, error: Exception = CUDA_FULL, *, backward: bool = False
) -> list[int]:
    """Make a model fail as a full device does; returns the sizes that it was asked for."""
    sizes = []

    def refuse(*_args: object) -> None:
        if sizes[-1] > tokens:
            raise error

    def count(_module: nn.Module, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        sizes.append(kwargs["input_ids"].numel())
        if not backward:
            refuse()

    def fail_later(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        if backward and output.requires_grad:
            output.register_hook(refuse)

    model.register_forward_pre_hook(count, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(fail_later)
    return sizes
