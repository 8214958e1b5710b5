"""``hbo simulate``: policies on a toy learner, in seconds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from hbo.cli.options import AsJson
from hbo.cli.output import print_json, quiet_libraries

ALL = "all"
PolicyNames = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="hbo (default), prop, temp, uni, ...; several, or all: a table of them.",
    ),
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
Seeds = Annotated[
    int, typer.Option(min=1, help="Of several policies: seeds from --seed on, a toy for each.")
]
Imbalance = Annotated[float, typer.Option(help="Size of the largest subset over the smallest.")]
Overfit = Annotated[
    float, typer.Option(help="Rise of a cell's held-out loss with each pass after the first.")
]


def simulate(
    policy: PolicyNames = None,
    set_: Fields = None,
    subsets: Subsets = 8,
    groups: Groups = 4,
    steps: Steps = 600,
    batch: Batch = 16,
    seed: Seed = 0,
    seeds: Seeds = 3,
    imbalance: Imbalance = 50.0,
    overfit: Overfit = 0.0,
    as_json: AsJson = False,
) -> None:
    """Run policies on a toy learner with known dynamics; shows where they go and what they cost."""
    names = policy or ["hbo"]
    fields = _fields(set_ or ())
    settings: dict[str, Any] = {
        "num_subsets": subsets,
        "num_groups": groups,
        "steps": steps,
        "batch": batch,
        "imbalance": imbalance,
        "overfit": overfit,
    }
    if len(names) > 1 or ALL in names:
        _several(names, range(seed, seed + seeds), fields, settings, as_json)
    else:
        _one(names[0], fields, settings | {"seed": seed}, as_json)


def _one(name: str, fields: dict[str, Any], settings: dict[str, Any], as_json: bool) -> None:
    from hbo.policies import make_policy
    from hbo.simulate import UPDATES, render_text
    from hbo.simulate import simulate as run

    interval = {"update_interval": max(1, settings["steps"] // UPDATES)}
    with quiet_libraries():
        result = run(make_policy(name, interval | fields), **settings)
    if as_json:
        print_json(_to_json(name, result))
    else:
        print(render_text(result))


def _several(
    names: Sequence[str],
    seeds: Sequence[int],
    fields: dict[str, Any],
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    from hbo.simulate import render_standings, runnable, side_by_side

    chosen = [one for name in names for one in (runnable() if name == ALL else [name])]
    with quiet_libraries():
        standings = side_by_side(list(dict.fromkeys(chosen)), seeds, fields=fields, **settings)
    if not as_json:
        print(render_standings(standings))
        return
    rows = [dataclasses.asdict(standing) for standing in standings]
    for row in rows:  # JSON has no NaN
        row["regret_error"] = row["regret_error"] if math.isfinite(row["regret_error"]) else None
    print_json({"schema": 1, "seeds": list(seeds), "policies": rows})


def _fields(overrides: Sequence[str]) -> dict[str, Any]:
    from hbo.config.document import Document
    from hbo.config.overrides import apply_override

    document = Document({})
    for text in overrides:
        apply_override(document, text)
    return document.values


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
