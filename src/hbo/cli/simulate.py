"""``hbo simulate``: a policy on a toy learner, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hbo.cli.options import AsJson
from hbo.cli.output import print_json, quiet_libraries

PolicyName = Annotated[
    str, typer.Option("--policy", metavar="NAME", help="hbo, prop, temp, uni, ...")
]
Fields = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="A field of the policy; repeatable."),
]
Subsets = Annotated[int, typer.Option(help="Subsets, up to thousands.")]
Groups = Annotated[int, typer.Option(help="Difficulty groups of each subset.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
Batch = Annotated[int, typer.Option(help="Examples of a step.")]
Seed = Annotated[int, typer.Option(help="Of the toy, its noise and the draws.")]
Imbalance = Annotated[float, typer.Option(help="Size of the largest subset over the smallest.")]


def simulate(
    policy: PolicyName = "hbo",
    set_: Fields = None,
    subsets: Subsets = 8,
    groups: Groups = 4,
    steps: Steps = 600,
    batch: Batch = 16,
    seed: Seed = 0,
    imbalance: Imbalance = 50.0,
    as_json: AsJson = False,
) -> None:
    """Run a policy on a toy learner with known dynamics; shows where it goes and what it costs."""
    from hbo.simulate import UPDATES, render_text
    from hbo.simulate import simulate as run

    fields = {"update_interval": max(1, steps // UPDATES), **_fields(set_ or ())}
    with quiet_libraries():
        result = run(
            _policy(policy, fields),
            num_subsets=subsets,
            num_groups=groups,
            steps=steps,
            batch=batch,
            seed=seed,
            imbalance=imbalance,
        )
    if as_json:
        print_json(_to_json(policy, result))
    else:
        print(render_text(result))


def _fields(overrides: Sequence[str]) -> dict[str, Any]:
    from hbo.config.document import Document
    from hbo.config.overrides import apply_override

    document = Document({})
    for text in overrides:
        apply_override(document, text)
    return document.values


def _policy(name: str, fields: dict[str, Any]) -> Any:
    from hbo.policies import make_policy

    return make_policy(name, fields)


def _to_json(policy: str, result: Any) -> dict[str, Any]:
    names = result.mixture.names
    return {
        "schema": 1,
        "policy": policy,
        "steps": result.steps.tolist(),
        "macro_loss": result.macro.tolist(),
        "best_macro_loss": result.best_macro,
        "regret": result.regret,
        "seconds": result.seconds,
        "notes": result.notes,
        "subsets": {
            name: {
                "examples": int(result.mixture.subset_sizes[k]),
                "draws": int(result.draws[k].sum()),
                "passes": float(result.passes[k]),
                "loss": result.subset_losses[:, k].tolist(),
                "probabilities": result.probabilities[:, k].tolist(),
                "best_probability": float(result.best_probabilities[k].sum()),
            }
            for k, name in enumerate(names)
        },
    }
