"""Hierarchical Balancing Optimisation: decide, while a model is fine-tuned, what it trains on next.

Two lines for a user of TRL::

    mixture = build_mixture(
        {"arabic": ds_ar, "german": ds_de}, difficulty="ifd", groups=4, model=model
    )
    trainer = BalancedSFTTrainer(model=model, args=sft_config, mixture=mixture, policy=HBO())

Names are imported when they are first used, so that ``import hbo`` needs NumPy at most.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbo.balancer import Balancer as Balancer
    from hbo.data.assemble import BuiltMixture as BuiltMixture
    from hbo.data.build import build_mixture as build_mixture
    from hbo.integrations.transformers import BalancedTrainer as BalancedTrainer
    from hbo.integrations.transformers import attach as attach
    from hbo.integrations.trl import BalancedSFTTrainer as BalancedSFTTrainer
    from hbo.mixture import Mixture as Mixture
    from hbo.policies import HBO as HBO
    from hbo.policies import POLICIES as POLICIES
    from hbo.policies import make_policy as make_policy

__version__ = "0.1.0"

_HOMES = {
    "Balancer": "hbo.balancer",
    "BalancedSFTTrainer": "hbo.integrations.trl",
    "BalancedTrainer": "hbo.integrations.transformers",
    "BuiltMixture": "hbo.data.assemble",
    "HBO": "hbo.policies",
    "Mixture": "hbo.mixture",
    "POLICIES": "hbo.policies",
    "attach": "hbo.integrations.transformers",
    "build_mixture": "hbo.data.build",
    "make_policy": "hbo.policies",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hbo' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
