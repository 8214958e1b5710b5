"""``extends: FILE``: a configuration that is another one with changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hbo.config.document import Document, Path_, load_document
from hbo.errors import ConfigError

KEY = "extends"
MOST = 10
"""Files in one chain."""


def load_extended(path: Path | str, seen: tuple[Path, ...] = ()) -> Document:
    """Read a configuration file and what it extends, its own values on top.

    Mappings are merged key by key, anything else is replaced, and ``null`` takes away what the
    other file says. The other file is looked for beside the one that names it.

    Args:
        path: A configuration file.
        seen: Files that led here.

    Raises:
        ConfigError: As ``load_document``; ``extends`` is no text, or the files go round in a circle
            or on for more than ``MOST``.
    """
    document = load_document(path)
    if KEY not in document.values:
        return document
    named, where = document.values.pop(KEY), document.place((KEY,))
    if not isinstance(named, str) or not named:
        raise ConfigError(
            f"extends: must be the name of one configuration file, not {named!r}", where=where
        )
    chain = (*seen, Path(path).resolve())
    base = Path(path).parent / named
    if base.resolve() in chain or len(chain) >= MOST:
        raise ConfigError(f"extends: {named} leads back here, or too far; remove it", where=where)
    try:
        below = load_extended(base, chain)
    except ConfigError as error:
        if error.where == str(base):  # it could not be read: the line that names it is to blame
            raise ConfigError(f"extends: {named}: {error.message}", where=where) from None
        raise
    places = below.places | document.places
    return Document(_merged(below.values, document.values, (), places), places)


def _merged(
    below: dict[str, Any], above: dict[str, Any], path: Path_, places: dict[Path_, str]
) -> dict[str, Any]:
    values = dict(below)
    for key, value in above.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            # Of an inherited key the line is the one where it is written; of the section, ours.
            values[key] = _merged(values[key], value, here, places)
        elif value is None and key in values:
            del values[key]
        else:
            values[key] = value
    return values
