"""What a training builds first, built once without weights, so that a plan finds what breaks it.

TRL, peft and torch check many settings only when their objects are made: after an hour of scoring.
A model on torch's ``meta`` device has every module and no memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hbo.config import LoadedConfig
from hbo.config.explain import shorten, unknown
from hbo.errors import ConfigError
from hbo.run.caches import scores_dir
from hbo.run.folder import require_place
from hbo.run.models import empty_model
from hbo.run.prepare import Prepared
from hbo.run.scores import is_measured
from hbo.signals import UNCERTAINTIES


def rehearse(prepared: Prepared, steps: int) -> None:
    """Refuse settings that the trainer would refuse.

    Args:
        prepared: The data and the settings.
        steps: Optimiser steps of the run.

    Raises:
        ConfigError: Balancing, a tracker, the model, its adapter or the optimiser refuses them.
    """
    loaded, settings = prepared.loaded, prepared.settings
    require_place(loaded, ("output_dir",), Path(loaded.config.output_dir))
    if is_measured(loaded.config.difficulty.metric):
        require_place(loaded, ("difficulty", "cache_dir"), scores_dir(loaded.config))
    _check_balancing(loaded, settings.training)
    _check_trackers(loaded, settings.training)
    _check_best(loaded, settings.training)
    _check_benchmarks(loaded)
    model = _check_model(prepared, ("model",), prepared.model)
    if prepared.scoring_model != prepared.model:
        _check_model(prepared, ("difficulty", "scoring_model"), prepared.scoring_model)
    _check_adapter(loaded, settings.tuning, model)
    _check_dropout(loaded, model)
    _check_optimiser(loaded, settings.training, steps)


def _check_balancing(loaded: LoadedConfig, training: Any) -> None:
    from hbo.integrations.fit import check_arguments, check_evaluated

    try:
        check_arguments(training)
    except ConfigError as error:
        key = re.split(r"[ =.]", error.message)[0]
        raise loaded.error(("training", key), error.message) from None
    try:
        check_evaluated(loaded.config.datasets if training.eval_strategy != "no" else None)
    except ConfigError as error:
        raise loaded.error(("datasets", "mixture"), error.message) from None
    if training.use_liger_kernel:
        from transformers.utils import is_liger_kernel_available

        if not is_liger_kernel_available():
            text = "is true, but liger-kernel is not installed; install it or leave this out"
            raise loaded.error(("training", "use_liger_kernel"), text)


def _check_trackers(loaded: LoadedConfig, training: Any) -> None:
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    asked = training.report_to or []
    here = get_available_reporting_integrations()
    for name in [asked] if isinstance(asked, str) else asked:
        place = ("training", "report_to")
        if name in {"none", "all"}:
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            raise loaded.error(place, unknown(name, INTEGRATION_TO_CALLBACK, kind="tracker"))
        # These two are never listed as available.
        if name not in here and name not in {"flyte", "azure_ml"}:
            there = f"; installed: {', '.join(here)}" if here else ""
            text = f"the tracker {name!r} is not installed; install it or choose another{there}"
            raise loaded.error(place, text)


def _check_best(loaded: LoadedConfig, training: Any) -> None:
    """The metric that chooses a checkpoint must be one that evaluations have."""
    metric = training.metric_for_best_model
    if not training.load_best_model_at_end or metric is None:
        return
    known = ["mixture_loss", *(f"{name}_loss" for name in loaded.config.datasets)]
    plain = metric.removeprefix("eval_")
    # TRL adds metrics of its own for each dataset, such as its mean token accuracy.
    if plain in known or any(plain.startswith(f"{name}_") for name in loaded.config.datasets):
        return
    text = unknown(metric, [f"eval_{name}" for name in known], kind="metric")
    raise loaded.error(("training", "metric_for_best_model"), text)


def _check_benchmarks(loaded: LoadedConfig) -> None:
    """`hbo evaluate` runs them, hours later."""
    from hbo.evaluation.harness import check_benchmarks

    settings = loaded.config.evaluation
    if not settings.benchmarks:
        return
    try:
        check_benchmarks(settings.benchmarks, settings.harness.files)
    except ConfigError as error:
        place: tuple[str, ...] = ("evaluation", "benchmarks")
        text = error.message.removeprefix("evaluation.harness.files: ")
        if text != error.message:
            place = ("evaluation", "harness", "files")
        raise loaded.error(place, text) from None


def _check_model(prepared: Prepared, path: tuple[str, ...], name: str) -> Any:
    loaded = prepared.loaded
    model = empty_model(loaded, name, prepared.settings, path)
    rows = model.get_input_embeddings().num_embeddings
    tokens = [int(item.input_ids.max()) for part in prepared.parts for item in part.encoded.encoded]
    if max(tokens) >= rows:
        raise loaded.error(
            path,
            f"{name!r} knows {rows} tokens, and the tokenizer of {prepared.model!r} gives token"
            f" {max(tokens)}; a model and its tokenizer (and a scoring model) must belong together",
        )
    return model


def _check_adapter(loaded: LoadedConfig, tuning: Any, model: Any) -> None:
    from trl import get_peft_config

    if not tuning.use_peft:
        return
    try:
        from peft import get_peft_model

        get_peft_model(model, get_peft_config(tuning))
    except (ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        text = f"peft refuses this: {shorten(str(error), 300)}"
        raise loaded.error(("tuning",), text) from error


def _check_dropout(loaded: LoadedConfig, model: Any) -> None:
    """Passes with dropout need some, in the model or in the adapter that it has by now."""
    from hbo.measure.uncertainty import check_dropout
    from hbo.run.budget import policy_of

    if loaded.config.balance.dropout_passes is None or not policy_of(loaded).needs & UNCERTAINTIES:
        return
    try:
        check_dropout(model)
    except ConfigError as error:
        text = error.message.removeprefix("balance.dropout_passes ")
        raise loaded.error(("balance", "dropout_passes"), text) from None


def _check_optimiser(loaded: LoadedConfig, training: Any, steps: int) -> None:
    """The optimiser and the schedule, on one number."""
    import torch
    from transformers import Trainer, get_scheduler

    if training.optim_target_modules or training.deepspeed or training.fsdp:
        return
    try:
        make, options = Trainer.get_optimizer_cls_and_kwargs(training)
        optimiser = make([torch.nn.Parameter(torch.zeros(1))], **options)
        get_scheduler(
            training.lr_scheduler_type,
            optimizer=optimiser,
            num_warmup_steps=training.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        text = f"the optimiser or its schedule refuses this: {shorten(str(error), 300)}"
        raise loaded.error(("training",), text) from error
