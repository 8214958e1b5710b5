"""``--set a.b=value``: one setting from the command line, over the file."""

from __future__ import annotations

from typing import Any

from hbo.config.document import Document, parse_value
from hbo.config.secrets import HIDDEN, hide, is_secret
from hbo.errors import ConfigError

WHERE = "--set"


def apply_override(document: Document, text: str) -> None:
    """Put one ``--set`` into a document, in place.

    The value is read as YAML (``1e-5``, ``true``, ``[a, b]``, ``{policy: hbo}``); a mapping that is
    named on the way and is not there yet is made.

    Args:
        document: The configuration file's values.
        text: ``dotted.path=value``; a name with dots is quoted: ``datasets."a.b".weight=0.2``.

    Raises:
        ConfigError: No ``=``, an unclosed quote, an empty name, or a path through a plain value.

    Example:
        >>> document = Document({"seed": 1})
        >>> apply_override(document, 'datasets."a.b".weight=2e-1')
        >>> document.values
        {'seed': 1, 'datasets': {'a.b': {'weight': 0.2}}}
    """
    path, rest = split_path(text)
    value = parse_value(rest, WHERE)
    here: dict[str, Any] = document.values
    for depth, name in enumerate(path[:-1], 1):
        below = here.get(name)
        if below is None:
            below = here[name] = {}
            document.places[path[:depth]] = WHERE
        if not isinstance(below, dict):
            shown = HIDDEN if is_secret(name) else repr(below)
            raise ConfigError(
                f"{dotted(path)}: {dotted(path[:depth])} is {shown}, not a mapping; set it whole",
                where=WHERE,
            )
        # Copied, since an alias of the file may share this mapping with another key.
        here[name] = dict(below)
        here = here[name]
    here[path[-1]] = value
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = WHERE


def split_path(text: str) -> tuple[tuple[str, ...], str]:
    """The names and the value's text of one ``--set``."""
    names: list[str] = []
    name = ""
    quote = ""
    quoted = False
    for position, letter in enumerate(text):
        if quote:
            if letter == quote:
                quote = ""
            else:
                name += letter
        elif letter in "\"'" and not name and not quoted:
            quote, quoted = letter, True
        elif letter in ".=":
            if not name and not quoted:
                break
            names.append(name)
            name, quoted = "", False
            if letter == "=":
                return tuple(names), text[position + 1 :]
        else:
            name += letter
    problem = "has an unclosed quote" if quote else "has no value or an empty name"
    raise ConfigError(
        f"{hide(text[:80])!r} {problem}; write --set key.name=value (names with dots in quotes)",
        where=WHERE,
    )


def dotted(path: tuple[str, ...] | list[str]) -> str:
    """A path as ``--set`` would take it.

    Example:
        >>> dotted(("datasets", "a.b", "weight"))
        'datasets."a.b".weight'
    """
    return ".".join(f'"{name}"' if "." in name or "=" in name else name for name in path)
