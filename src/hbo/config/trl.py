"""``training`` is TRL's ``SFTConfig`` and ``tuning`` its ``ModelConfig``, verbatim and checked.

TRL and transformers do not check the types of their fields, so a misspelt word would surface in the
middle of a run; here every value meets the annotation of its field before any work.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hbo.config.explain import shorten, unknown
from hbo.config.load import LoadedConfig

ONE_HOME = {
    "output_dir": "set the top-level 'output_dir' instead",
    "seed": "set the top-level 'seed' instead",
    "data_seed": "the top-level 'seed' decides the stream of draws as well",
    "resume_from_checkpoint": "use `hbo train --resume` instead",
}
POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "save_steps",
    "num_train_epochs",
    "max_length",
)
NOT_NEGATIVE = (
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "dataloader_num_workers",
)
ON_CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """TRL's two dataclasses, built, and what was decided for the user on the way."""

    training: Any
    tuning: Any
    notices: tuple[str, ...]


def check_trl(loaded: LoadedConfig, accelerator: bool | None = None) -> TrainerSettings:
    """Build ``SFTConfig`` and ``ModelConfig`` from the configuration.

    Without an accelerator, unset ``use_cpu`` becomes true, ``bf16`` and ``gradient_checkpointing``
    false (TRL's own defaults stop on a CPU); each is told as a notice.

    Args:
        loaded: The configuration.
        accelerator: Whether there is one; ``None`` asks torch.

    Raises:
        ConfigError: An unknown field, a value of a wrong type or range, or a combination that TRL
            refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import ModelConfig, SFTConfig

    _check_fields(
        loaded, "tuning", ModelConfig, {"model_name_or_path": "set the top-level 'model'"}
    )
    _check_fields(loaded, "training", SFTConfig, ONE_HOME)
    _check_ranges(loaded)
    config = loaded.config
    values, notices = with_cpu_defaults(config.training, accelerator)
    # A progress bar is for people at a terminal; elsewhere it would only fill a log.
    values.setdefault("disable_tqdm", not sys.stderr.isatty())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = _construct(
            loaded, "training", SFTConfig, output_dir=config.output_dir, seed=config.seed, **values
        )
        tuning = _construct(
            loaded, "tuning", ModelConfig, model_name_or_path=config.model, **config.tuning
        )
    return TrainerSettings(training, tuning, tuple(notices))


def _construct(loaded: LoadedConfig, section: str, dataclass: type, **values: Any) -> Any:
    try:
        return dataclass(**values)
    except Exception as error:
        # It raises more than ValueError over them; whatever it is, the values are the user's.
        text = f"{dataclass.__name__} refuses this: {shorten(str(error) or repr(error), 300)}"
        raise loaded.error((section,), text) from error


def with_cpu_defaults(
    training: Mapping[str, Any], accelerator: bool | None = None
) -> tuple[dict[str, Any], list[str]]:
    """``training`` completed for a machine without an accelerator, and a notice for each addition.

    Example:
        >>> with_cpu_defaults({"bf16": True}, accelerator=True)
        ({'bf16': True}, [])
    """
    values = dict(training)
    if accelerator is None:
        import torch

        accelerator = torch.accelerator.is_available()
    on_cpu = not accelerator or values.get("use_cpu") is True
    notices = []
    if on_cpu:
        for key, value in ON_CPU.items():
            taken = key in values or (
                key == "gradient_checkpointing" and "activation_checkpointing" in values
            )
            if taken:
                continue
            values[key] = value
            notices.append(
                f"training.{key} is unset: {str(value).lower()}, as there is no accelerator"
            )
    return values, notices


def _check_fields(
    loaded: LoadedConfig, section: str, dataclass: type, refused: Mapping[str, str]
) -> None:
    values: Mapping[str, Any] = getattr(loaded.config, section)
    known = [
        field.name
        for field in dataclasses.fields(dataclass)
        if field.init and field.name not in refused
    ]
    hints = typing.get_type_hints(dataclass)
    for key, value in values.items():
        if key in refused:
            raise loaded.error((section, key), f"is not set here; {refused[key]}")
        if key not in known:
            raise loaded.error((section, key), unknown(key, known))
        _check_type(loaded, (section, key), hints[key], value)


def _check_type(loaded: LoadedConfig, path: tuple[str, ...], hint: Any, value: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        # A truth value passes for a number in lax mode, so that case is taken first.
        if isinstance(value, bool) and hint in (int, float):
            raise ValueError
        adapter.validate_python(value)
    except (ValidationError, ValueError):
        kind = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
            kind, kind
        )
        raise loaded.error(path, f"is {shorten(value)}; must be {kind}") from None


def _check_ranges(loaded: LoadedConfig) -> None:
    training = loaded.config.training
    for key in (*POSITIVE, *NOT_NEGATIVE):
        value = training.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if key in POSITIVE and value <= 0:
            raise loaded.error(("training", key), f"is {value}; must be above 0")
        if not 0 <= value < float("inf"):
            raise loaded.error(
                ("training", key), f"is {value}; must be a finite number, at least 0"
            )
    steps = training.get("max_steps")
    if isinstance(steps, int) and steps < 1 and steps != -1:
        raise loaded.error(
            ("training", "max_steps"),
            f"is {steps}; must be at least 1 (or -1: num_train_epochs decides)",
        )
