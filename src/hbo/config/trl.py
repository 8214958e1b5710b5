"""``training`` is TRL's ``SFTConfig`` and ``tuning`` its ``ModelConfig``, verbatim and checked.

TRL and transformers do not check the types of their fields, so a misspelt word would surface in the
middle of a run; here every value meets the annotation of its field before any work.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hbo.config.explain import shorten, unknown
from hbo.config.load import LoadedConfig
from hbo.config.ranges import check_ranges
from hbo.config.secrets import HIDDEN, is_secret

ONE_HOME = {
    "output_dir": "set the top-level 'output_dir' instead",
    "seed": "set the top-level 'seed' instead",
    "data_seed": "the top-level 'seed' decides the stream of draws as well",
    "resume_from_checkpoint": "use `hbo train --resume` instead",
}
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
    check_ranges(loaded)
    config = loaded.config
    values, notices = with_cpu_defaults(config.training, accelerator)
    if {"load_best_model_at_end", "save_strategy", "lr_scheduler_type"} & values.keys():
        # TRL's own default, "loss", is a metric that evaluations of several datasets do not have.
        values.setdefault("metric_for_best_model", _best_metric(values))
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
    names = config.tuning.get("lora_target_modules")
    if isinstance(names, list) and names != ["all-linear"] and not _is_pattern(names):
        # TRL makes one name a text, which peft takes for a regex.
        tuning.lora_target_modules = names
    if training.packing and training.max_length is None:
        raise loaded.error(
            ("training", "packing"), "needs training.max_length, the tokens of a row"
        )
    return TrainerSettings(training, tuning, tuple(notices))


def _is_pattern(names: list[str]) -> bool:
    r"""Whether a list is one regular expression: text that could be no module's name.

    Example:
        >>> _is_pattern(["q_proj"]), _is_pattern([r".*layers\.(28|29)\..*_proj"])
        (False, True)
    """
    return len(names) == 1 and re.fullmatch(r"[\w.]*", names[0]) is None


def _best_metric(values: Mapping[str, Any]) -> str | None:
    """The macro loss over subsets, where a metric is asked for and not named."""
    asked = (
        values.get("load_best_model_at_end") is True
        or values.get("save_strategy") == "best"
        or values.get("lr_scheduler_type") == "reduce_lr_on_plateau"
    )
    return "eval_mixture_loss" if asked else None


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
    dataclass_fields = {field.name: field for field in dataclasses.fields(dataclass) if field.init}
    known = [name for name in dataclass_fields if name not in refused]
    hints = typing.get_type_hints(dataclass)
    for key, value in values.items():
        if key in refused:
            raise loaded.error((section, key), f"is not set here; {refused[key]}")
        if key not in known:
            raise loaded.error((section, key), unknown(key, known))
        _check_type(loaded, (section, key), hints[key], value)
        words = dataclass_fields[key].metadata.get("choices")
        if words and value is not None and value not in words:
            raise loaded.error((section, key), unknown(str(value), words, kind="value"))


def _check_type(loaded: LoadedConfig, path: tuple[str, ...], hint: Any, value: Any) -> None:
    # Strict: TRL would keep the text '4' as a batch size, and 'no' as a yes.
    settings = ConfigDict(arbitrary_types_allowed=True, strict=True)
    try:
        TypeAdapter(hint, config=settings).validate_python(value)
    except ValidationError:
        shown = HIDDEN if is_secret(path[-1]) else shorten(value)
        quoted = value is False and "Strategy" in str(hint)  # YAML reads a bare no so
        kind = "a word, and the word no in quotes: '\"no\"'" if quoted else _kind(hint)
        raise loaded.error(path, f"is {shown}; must be {kind}") from None


def _kind(hint: Any) -> str:
    """A type in words."""
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    plain = text.removesuffix(" | None")
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    return words.get(plain, plain) + (" (or null)" if plain != text else "")
