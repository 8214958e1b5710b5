"""What makes the runs of a comparison comparable, and what refuses them where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hbo.config import LoadedConfig
from hbo.run import folder as files

if TYPE_CHECKING:
    from hbo.run.comparison import Planned, Run


def require_same(runs: Sequence[Run]) -> None:
    """Refuse to go on with, or to pass off as ours, a run that was begun with other settings."""
    for run in runs:
        changed = files.changed_keys(run.resolved, run.folder)
        if changed:
            raise run.loaded.error(
                ("output_dir",),
                f"{str(run.folder)!r} holds a run of another configuration "
                f"({', '.join(changed[:5])}); remove that folder to make this run anew and keep "
                "the others, set another output_dir, or begin all anew with --overwrite",
            )


def require_equal(loaded: LoadedConfig, planned: Sequence[Planned]) -> None:
    """Policies are compared at the same steps and draws, on the same held-out examples."""
    first = planned[0]
    for other in planned[1:]:
        for key, word in (("steps", "steps"), ("draws_per_step", "draws a step")):
            if other.facts[key] != first.facts[key]:
                raise loaded.error(
                    ("policies", other.entry.group),
                    f"it has {other.facts[key]} {word} and {first.entry.name!r} has "
                    f"{first.facts[key]}; a comparison fixes steps and draws: set "
                    "training.max_steps and the batch for all alike",
                )
        for name in {**first.heldout, **other.heldout}:
            if other.heldout.get(name) != first.heldout.get(name):
                raise loaded.error(
                    ("policies", other.entry.group),
                    f"its held-out examples of {name!r} are not those of {first.entry.name!r}; a "
                    "comparison fixes what is measured: set for all alike what changes their "
                    "tokens, such as training.max_length",
                )
