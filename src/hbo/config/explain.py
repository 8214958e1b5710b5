"""What a validation error means, in one line that a user can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hbo.config.document import Document
from hbo.config.overrides import dotted
from hbo.config.schema import Config, DatasetSection, EvaluationSection
from hbo.errors import ConfigError

WANTED = {
    "string_type": "text (in quotes if it looks like a number or like yes/no)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "list_type": "a list",
    "finite_number": "a finite number",
}
LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely means."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    folded = {name.lower().replace("-", "_"): name for name in known}
    return folded.get(word.lower().replace("-", "_"))


def unknown(word: str, known: Iterable[str], kind: str = "key") -> str:
    """``unknown KIND 'word'; did you mean 'x'? ...`` for a name out of a table."""
    known = list(known)
    close = nearest(word, known)
    hint = f"did you mean {close!r}? " if close else ""
    listed = ", ".join(known) if len(known) <= 24 else f"{', '.join(known[:24])}, ..."
    return f"unknown {kind} {shorten(word)}; {hint}Allowed: {listed}"


def shorten(value: Any, length: int = 60) -> str:
    """A value as it is shown in a message: one short line without control characters."""
    # As a configuration file spells it.
    plain = {None: "null", True: "true", False: "false"}
    spelt = plain[value] if value is None or isinstance(value, bool) else repr(value)
    text = value if isinstance(value, str) else spelt
    text = re.sub(r"\s+", " ", text)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return f"'{text}'" if isinstance(value, str) else text


def config_error(error: ValidationError, document: Document) -> ConfigError:
    """The first problem of a configuration (by its place in the file) as a ``ConfigError``."""
    found = [_problem(details, document) for details in error.errors()]
    found = sorted(found, key=lambda item: _line(item.where))
    return found[0]


def _line(where: str | None) -> int:
    number = (where or "").rsplit(":", 1)[-1]
    return int(number) if number.isdigit() else 0


def _problem(details: ErrorDetails, document: Document) -> ConfigError:
    path = _path(details["loc"], document)
    context = details.get("ctx") or {}
    kind = details["type"]
    value = details["input"]
    if kind == "elsewhere":
        path = tuple(context["path"])
        text = details["msg"]
    elif kind == "of_key":
        path = (*path, context["key"])
        text = context["text"]
    elif kind == "extra_forbidden":
        text = unknown(path[-1], _keys_at(path[:-1]))
    elif kind == "unknown_word":
        text = unknown(str(value), context["known"], kind="value")
    elif kind == "literal_error":
        text = unknown(str(value), re.findall(r"'([^']*)'", str(context["expected"])), kind="value")
    elif kind == "missing":
        text = "is missing; it is required"
    elif kind == "value_error":
        text = str(context["error"])
    elif kind == "too_short" and path == ("datasets",):
        text = "is empty; name at least one dataset (name: {data_files: FILE})"
    elif kind in {"too_short", "string_too_short"}:
        text = "is empty; write a value or leave the key out"
    elif kind in LIMITS:
        word, key = LIMITS[kind]
        text = f"is {shorten(value)}; must be {word} {context[key]}"
    elif kind in WANTED:
        text = f"is {shorten(value)}; must be {_wanted(details, document)}"
    else:
        text = f"is {shorten(value)}: {details['msg']}"
    where = document.place(path)
    return ConfigError(f"{dotted(path)}: {text}" if path else text, where=where)


def _wanted(details: ErrorDetails, document: Document) -> str:
    """Where several types are allowed, pydantic reports each alone: name the plainest."""
    path = _path(details["loc"], document)
    if path and path[-1] in {"data_files", "eval_files"}:
        return "a file, a list of files or (data_files) a mapping from split to files"
    return WANTED[details["type"]]


def _path(location: Sequence[str | int], document: Document) -> tuple[str, ...]:
    """The path of an error without the names that pydantic adds for alternatives of a type."""
    path: list[str] = []
    here: Any = document.values
    for part in location:
        found, below = _inside(here, part)
        if found:
            here = below
        elif isinstance(here, dict) and part in _keys_at(path):
            here = None  # a required key that is missing
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _inside(values: Any, part: str | int) -> tuple[bool, Any]:
    """Whether plain values have this key or index, and what is there."""
    if isinstance(values, dict) and part in values:
        return True, values[part]
    if isinstance(values, list) and isinstance(part, int) and part < len(values):
        return True, values[part]
    return False, None


def _keys_at(path: Sequence[str]) -> list[str]:
    """Keys that the schema allows in the mapping at ``path``."""
    model: type[BaseModel] | None = None
    if not path:
        model = Config
    elif path[0] == "datasets" and len(path) == 2:
        model = DatasetSection
    elif len(path) == 1:
        field = Config.model_fields.get(path[0])
        kind = field.annotation if field else None
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    hidden = {"versions", "fields"} if model is not EvaluationSection else set()
    return [name for name in model.model_fields if name not in hidden] if model else []
