"""What makes a saved balancing state this run's own, and the words for what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hbo.errors import StateError

SCHEMA = 3
"""Of the balancing state in a checkpoint."""
ANEW = "set balance.resume to 'anew' to keep its weights and begin balancing anew"


_WORDS = {
    "subsets": "other subsets, or in another order",
    "groups": "difficulty groups of other sizes",
    "data": "other training examples (records, tokenizer, chat template, length limit or packing)",
    "weights": "other weights",
    "shares": "another min_share or max_share",
    "max_passes": "another max_passes",
}


class OtherRunError(StateError):
    """A saved state is of another run, or of another version of this package."""


def plain(value: Any) -> Any:
    """Settings as they come back from JSON."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # no JSON
    return value if isinstance(value, bool | int | float | str | None) else repr(value)


def check_identity(state: Any, own: Mapping[str, Any]) -> None:
    """Refuse a state of another run, naming what differs.

    Args:
        state: What ``Balancer.state_dict`` gave.
        own: The identity of the run that wants to go on from it.

    Raises:
        OtherRunError: It belongs to another mixture, policy or setting, or has another schema.
        StateError: It is no state.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("identity"), Mapping):
        raise StateError("the saved balancing state is damaged; use an earlier checkpoint")
    if state.get("schema") != SCHEMA:
        raise OtherRunError(
            f"the saved state has schema {str(state.get('schema'))[:20]}, this version reads "
            f"{SCHEMA}; resume with the version of hbo that wrote it, or {ANEW}"
        )
    saved = state["identity"]
    different = [key for key in own if saved.get(key) != own[key]]
    if different:
        told = " and ".join(_difference(key, saved.get(key), own[key]) for key in different)
        raise OtherRunError(f"the checkpoint was written with {told}; give the same, or {ANEW}")


def _difference(key: str, saved: Any, own: Any) -> str:
    """What differs, in words."""
    if key == "policy" and isinstance(saved, Mapping) and saved.get("type") == own["type"]:
        fields = [name for name in own if saved.get(name) != own[name]]
        told = (f"{name} {_short(saved.get(name))}, here {_short(own[name])}" for name in fields)
        return f"other settings of its policy ({'; '.join(told)})"
    if key == "policy":
        theirs = saved.get("type") if isinstance(saved, Mapping) else saved
        return f"another policy ({_short(theirs)}, here {own['type']})"
    if key in _WORDS:
        return _WORDS[key]
    return f"another {key} ({_short(saved)}, here {_short(own)})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
