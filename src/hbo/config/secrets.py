"""Secrets of a configuration: which values they are, and what is written in their place.

A run directory is passed on and a terminal is recorded, so neither gets a secret. ``***`` stands
where one was; read back, it counts as not given, and the hub's own log-in is used.
"""

from __future__ import annotations

import json
import re
from typing import Any

HIDDEN = "***"

_WORDS = (
    r"(?:token|(?:api|access|secret|private)[_-]?key|secret|password|passwd|credentials?"
    r"|authorization)"
)
_KEY = re.compile(rf"(?:.*[_-])?(?:{_WORDS}|auth)", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?:eos|pad|bos|unk|sep|cls|mask|eot|image|video|audio)_token")
_IN_TEXT = (
    # user:password@ of an address; a token of the hub; ?token=... of a signed address
    (re.compile(r"(?<=://)[^/\s@'\"]+@"), f"{HIDDEN}@"),
    (re.compile(r"\bhf_[A-Za-z0-9]{8,}"), HIDDEN),
    (
        # What is looked ahead for ends at the next ?, so that no text takes long.
        re.compile(rf"([?&](?=[^=&?\s]*(?:{_WORDS}|signature|\bsig))[^=&?\s]*=)[^&\s#'\"]+", re.I),
        rf"\1{HIDDEN}",
    ),
)


def is_secret(key: str) -> bool:
    """Whether a field of this name holds a secret; tokens of a vocabulary are none.

    Example:
        >>> is_secret("hub_token"), is_secret("eos_token"), is_secret("max_new_tokens")
        (True, False, False)
    """
    return bool(_KEY.fullmatch(key)) and not _VOCABULARY.fullmatch(key)


def hide(text: str) -> str:
    """A text without the secrets that can be told by their form.

    Example:
        >>> hide("https://me:pass@host/a.jsonl?token=abc")
        'https://***@host/a.jsonl?token=***'
    """
    for pattern, shown in _IN_TEXT:
        text = pattern.sub(shown, text)
    return text


def without_secrets(value: Any, *, named: bool = False) -> Any:
    """A copy of plain values with ``***`` in the place of each secret.

    Args:
        value: Mappings, lists and scalars.
        named: Whether keys say which values are secrets. They do in the sections of TRL; elsewhere
            a key may be a subset's name.

    Example:
        >>> without_secrets({"hub_token": "abc", "eos_token": "</s>"}, named=True)
        {'hub_token': '***', 'eos_token': '</s>'}
    """
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if named and is_secret(str(key)) and _can_be_secret(item)
            else without_secrets(item, named=named)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item, named=named) for item in value]
    if not isinstance(value, str):
        return value
    return _without_in_json(value) if named and value.lstrip().startswith("{") else hide(value)


def without_hidden(value: Any) -> Any:
    """Plain values without the entries that ``without_secrets`` has hidden."""
    if isinstance(value, dict):
        return {key: without_hidden(item) for key, item in value.items() if item != HIDDEN}
    return value


def _can_be_secret(value: Any) -> bool:
    return value is not None and not isinstance(value, bool)


def _without_in_json(text: str) -> str:
    """TRL takes some mappings as JSON text."""
    try:
        return json.dumps(without_secrets(json.loads(text), named=True), ensure_ascii=False)
    except (ValueError, RecursionError):
        return hide(text)
