"""Hashes that say whether numbers measured earlier still hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hbo.errors import ConfigError
from hbo.measure.examples import Encoded, TokenArray

SAMPLED_VALUES = 1024
"""Values of each tensor of a loaded model that enter its fingerprint."""
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
CHUNK_BYTES = 2**20

# Settings that do not change what a forward pass computes, but do change from save to save.
_IRRELEVANT = frozenset({"_name_or_path", "transformers_version", "use_cache", "architectures"})


def model_fingerprint(model: nn.Module | str | Path) -> str:
    """Hash of what a model computes: its configuration and its weights.

    Of a loaded model, name, shape, type and evenly spaced values of each tensor are read: any
    training step changes nearly all values, so a thousand of each tell two models apart, in
    milliseconds. Of a folder, the configuration and weight files are read whole. The two differ for
    the same model: stay with one of them.

    Args:
        model: A loaded Transformers (or PEFT) model, or the folder of a checkpoint.

    Returns:
        SHA-256, hexadecimal.

    Raises:
        ConfigError: The folder holds no weights.
    """
    if isinstance(model, nn.Module):
        return _digest(_parts_of_model(model))
    folder = Path(model)
    files = sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))
    if not files:
        raise ConfigError(
            f"no weights ({', '.join(WEIGHT_FILES)}) in the model folder", where=str(folder)
        )
    return _digest(_parts_of_files([*sorted(folder.glob("*config.json")), *files]))


def scoring_fingerprint(model: str, **facts: object) -> str:
    """Hash of what scores depend on besides the tokens: the ``key`` of ``score_examples``.

    Tokenizer, chat template and maximum length act through the tokens, which the cache hashes
    itself.

    Args:
        model: ``model_fingerprint`` of the scoring model.
        facts: Settings that change the numbers, such as ``dtype="bfloat16"``.

    Returns:
        SHA-256, hexadecimal.

    Example:
        >>> scoring_fingerprint("abc", dtype="float32") == scoring_fingerprint(
        ...     "abc", dtype="bfloat16"
        ... )
        False
    """
    return _digest(
        [json.dumps({"model": model, "facts": facts}, sort_keys=True, default=str).encode()]
    )


def tokenizer_fingerprint(tokenizer: Any) -> str | None:
    """SHA-256 of what turns text into tokens: vocabulary, rules, special tokens, chat template.

    ``None`` for what is no tokenizer of Transformers (an image processor).
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and not hasattr(tokenizer, "get_vocab"):
        return None
    rules = (
        json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    )
    template = getattr(tokenizer, "chat_template", None)
    special = getattr(tokenizer, "special_tokens_map", {})
    facts = json.dumps([template, special], sort_keys=True, default=str)
    return _digest(part.encode() for part in (rules, facts))


def examples_fingerprint(encoded: Iterable[Encoded]) -> str:
    """Hash of the tokens and labels of examples, in order (their ``alone`` fields left out)."""
    digest = hashlib.sha256()
    for example in encoded:
        digest.update(example.num_tokens.to_bytes(8, "little"))
        digest.update(_bytes_of(example.input_ids))
        digest.update(_bytes_of(example.labels))
    return digest.hexdigest()


def _bytes_of(tokens: TokenArray) -> bytes:
    return np.ascontiguousarray(tokens, dtype="<i4").tobytes()


def _parts_of_model(model: nn.Module) -> Iterable[bytes]:
    config = getattr(model, "config", None)
    yield json.dumps(_settings(config), sort_keys=True, default=str).encode()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()
        yield _sample(tensor.detach())


def _settings(config: Any) -> Mapping[str, object]:
    if config is None:
        return {}
    return {name: value for name, value in config.to_dict().items() if name not in _IRRELEVANT}


def _sample(tensor: torch.Tensor) -> bytes:
    flat = tensor.reshape(-1)
    where = torch.linspace(
        0, max(len(flat) - 1, 0), min(SAMPLED_VALUES, len(flat)), dtype=torch.float64
    )
    values = flat[where.long().to(flat.device)].cpu()
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _parts_of_files(paths: Iterable[Path]) -> Iterable[bytes]:
    for path in paths:
        if path.name.endswith("config.json"):
            settings = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: value for name, value in settings.items() if name not in _IRRELEVANT}
            yield json.dumps(kept, sort_keys=True).encode()
            continue
        yield path.name.encode()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
