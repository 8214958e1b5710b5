"""Versions, devices, and what each integration supports on this machine."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "peft",
    "tokenizers",
    "safetensors",
    "gguf",
    "jinja2",
    "matplotlib",
    "lm_eval",
)


def version_of(package: str) -> str | None:
    """Installed version of a distribution; ``None`` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """What made a run: Python, this package and every library that is installed."""
    import hbo

    known = {name: version_of(name) for name in PACKAGES}
    installed = {name: version for name, version in known.items() if version is not None}
    return {"hbo": hbo.__version__, "python": platform.python_version(), **installed}


def devices() -> list[str]:
    """Each accelerator by name, then the CPU."""
    import os

    found = []
    if version_of("torch") is not None:
        import torch

        if torch.cuda.is_available():
            found += [
                f"cuda:{i} {torch.cuda.get_device_name(i)}"
                for i in range(torch.cuda.device_count())
            ]
        elif torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator()
            found.append(str(kind.type if kind else "an accelerator"))
    return [*found, f"cpu, {os.cpu_count()} cores"]


def integrations() -> list[dict[str, str]]:
    """Each way to train, the packages it needs, and whether they are here."""
    table = [
        (
            "TRL SFTTrainer",
            "BalancedSFTTrainer",
            ("trl", "transformers", "accelerate", "datasets", "torch"),
        ),
        (
            "Transformers Trainer",
            "BalancedTrainer, attach",
            ("transformers", "accelerate", "datasets", "torch"),
        ),
        ("plain PyTorch loop", "hbo.integrations.torch", ("torch",)),
        ("LoRA", "tuning.use_peft", ("peft", "trl", "torch")),
        ("GGUF models", "model: an asset", ("gguf", "transformers", "torch")),
        ("report with charts", "hbo report", ("jinja2", "matplotlib")),
        ("benchmarks", "evaluation.benchmarks", ("lm_eval", "torch")),
    ]
    rows = []
    for what, use, packages in table:
        missing = [package for package in packages if version_of(package) is None]
        state = "ready" if not missing else f"missing: {', '.join(missing)}"
        rows.append({"what": what, "use": use, "state": state})
    return rows


def supported() -> list[dict[str, str]]:
    """What training setups this machine can run with the trainers that are here."""
    import torch

    cuda = torch.cuda.is_available()
    gpus = torch.cuda.device_count() if cuda else 0
    bf16 = cuda and torch.cuda.is_bf16_supported()
    return [
        {"what": "one process", "state": "ready"},
        {
            "what": "several processes (torchrun, gloo)",
            "state": _ready(torch.distributed.is_available()),
        },
        {"what": "one GPU", "state": _ready(gpus >= 1, "no GPU here")},
        {"what": "several GPUs (nccl)", "state": _ready(gpus >= 2, "fewer than two GPUs here")},
        {"what": "bf16 on an accelerator", "state": _ready(bf16, "no accelerator that has it")},
        {
            "what": "DeepSpeed",
            "state": _ready(version_of("deepspeed") is not None, "not installed"),
        },
    ]


def _ready(is_ready: bool, otherwise: str = "not available") -> str:
    return "ready" if is_ready else otherwise


def describe() -> dict[str, Any]:
    """All that ``hbo doctor`` prints."""
    from hbo.run.caches import cache_dir

    rows = integrations()
    torch_here = version_of("torch") is not None
    return {
        "versions": versions(),
        "devices": devices(),
        "integrations": rows,
        "setups": supported() if torch_here else [],
        "cache_dir": str(cache_dir()),
    }
