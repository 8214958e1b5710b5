"""Ranges and words of TRL's fields, which TRL itself checks late or not at all."""

from __future__ import annotations

import math
from typing import Any

from hbo.config.explain import shorten, unknown
from hbo.config.load import LoadedConfig
from hbo.config.schema import MOST

POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "save_steps",
    "eval_steps",
    "num_train_epochs",
)
NOT_NEGATIVE = (
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "dataloader_num_workers",
    "adam_epsilon",
    "neftune_noise_alpha",
)
FRACTIONS = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
"""At least 0 and below 1."""

WORDS = {
    ("training", "loss_type"): ("nll", "dft"),
    ("training", "truncation_mode"): ("keep_start", "keep_end"),
}


def check_ranges(loaded: LoadedConfig) -> None:
    """Refuse values that TRL's dataclasses take and its trainer cannot.

    Raises:
        ConfigError: A number out of its range, or a word that is none of the allowed ones.
    """
    _check_most(loaded)
    training = loaded.config.training
    for key in (*POSITIVE, *NOT_NEGATIVE):
        value = _number(training.get(key))
        if value is None:
            continue
        if key in POSITIVE and value <= 0:
            raise loaded.error(("training", key), f"is {value}; must be above 0")
        if not 0 <= value < math.inf:
            text = f"is {value}; must be a finite number, at least 0"
            raise loaded.error(("training", key), text)
        if value > MOST:
            raise loaded.error(("training", key), f"is {value}; must be at most {MOST}")
    for key in FRACTIONS:
        _check_fraction(loaded, ("training", key))
    _check_fraction(loaded, ("tuning", "lora_dropout"))
    _check_least(loaded, ("training", "max_length"), 2, "or null: nothing is cut")
    _check_least(loaded, ("training", "save_total_limit"), 1, "or null: all are kept")
    _check_least(loaded, ("tuning", "lora_r"), 1)
    _check_least(loaded, ("tuning", "lora_alpha"), 1)
    if training.get("max_steps") != -1:
        _check_least(loaded, ("training", "max_steps"), 1, "or -1: num_train_epochs decides")
    for path, known in WORDS.items():
        word = _value(loaded, path)
        if word is not None and word not in known:
            raise loaded.error(path, unknown(str(word), known, kind="value"))


def _check_most(loaded: LoadedConfig) -> None:
    """Whole numbers whose products fit into 64 bits; a run has no use for larger ones."""
    for section in ("training", "tuning"):
        values: dict[str, Any] = getattr(loaded.config, section)
        for key, value in values.items():
            if isinstance(value, int) and value > MOST:
                raise loaded.error((section, key), f"is {shorten(value)}; must be at most {MOST}")
    parts = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
    draws = math.prod(max(_number(loaded.config.training.get(key)) or 1, 1) for key in parts)
    if draws >= 2**53:
        text = f"times the examples of a step is {draws:.3g} draws; at most 2**53 can be counted"
        raise loaded.error(("training", "max_steps"), text)


def _value(loaded: LoadedConfig, path: tuple[str, str]) -> Any:
    section: dict[str, Any] = getattr(loaded.config, path[0])
    return section.get(path[1])


def _number(value: Any) -> int | float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _check_fraction(loaded: LoadedConfig, path: tuple[str, str]) -> None:
    value = _number(_value(loaded, path))
    if value is not None and not 0 <= value < 1:
        raise loaded.error(path, f"is {shorten(value)}; must be at least 0 and below 1")


def _check_least(loaded: LoadedConfig, path: tuple[str, str], least: int, other: str = "") -> None:
    value = _number(_value(loaded, path))
    if value is not None and value < least:
        tail = f" ({other})" if other else ""
        raise loaded.error(path, f"is {value}; must be at least {least}{tail}")
