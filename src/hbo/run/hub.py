"""Whether the model hub can be reached, asked once and briefly.

The hub's own client tries again for most of a minute before it gives up; a plan should not.
"""

from __future__ import annotations

from typing import Any

SECONDS = 10.0


def hub_is_reachable(seconds: float = SECONDS) -> bool:
    """One request to the hub's address; any answer counts."""
    from huggingface_hub import constants, utils

    if constants.is_offline_mode():
        return False
    try:
        session: Any = utils.get_session()  # type: ignore[attr-defined]
        session.head(constants.ENDPOINT, timeout=seconds)
    except Exception:
        # Whatever stands in the way (name service, proxy, time), the hub is out of reach.
        return False
    return True


def is_in_hub_cache(name: str, revision: str = "main") -> bool:
    """Whether the hub's client has this model's configuration on disk."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        return False
