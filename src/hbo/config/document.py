"""Configuration files as plain values, with the place where each value was written.

YAML is read with the safe loader's parts and JSON with the standard library; nothing in a file can
run code, and duplicate keys, tags, endless aliases, whole numbers beyond 64 bits, NUL characters
and halves of surrogate pairs are refused. Two traps of YAML 1.1 are taken out: ``1e-5`` is a
number, and a key is always text (a subset may be called ``no`` or ``1``).
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from hbo.errors import ConfigError

Path_ = tuple[str, ...]
MAX_BYTES = 10_000_000
MAX_NODES = 200_000
MAX_DEPTH = 60
MAX_WHOLE = 2**63
"""No setting needs a larger number, and arithmetic with one would fail far from its line."""
MAX_PLACED_BYTES = 200_000
"""Lines of a larger JSON text are not looked for: reading it as YAML takes a second per 200 kB."""
PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")
)
_MERGE = "tag:yaml.org,2002:merge"
_NO_TEXT = re.compile("[\\0\ud800-\udfff]")


@dataclass
class Document:
    """Plain values and, for each dotted path in them, where it was written."""

    values: dict[str, Any]
    places: dict[Path_, str] = field(default_factory=dict)

    def place(self, path: Sequence[str]) -> str | None:
        """The place of the value at ``path``, or of the nearest thing around it."""
        for end in range(len(path), -1, -1):
            found = self.places.get(tuple(path[:end]))
            if found is not None:
                return found
        return None


class _Loader(yaml.SafeLoader):
    """The safe loader with the number rules of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    (
        "bool",
        r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "yYnNtTfFoO",
    ),
    ("int", r"[-+]?(0x[0-9a-fA-F_]+|0b[01_]+|[0-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", "<<", "<"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def load_document(path: Path | str) -> Document:
    """Read a configuration file, YAML or JSON by its suffix.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file.

    Raises:
        ConfigError: It is not there, no text, no valid YAML or JSON, or not a mapping.
    """
    path = Path(path)
    if path.suffix.lower() not in {".yaml", ".yml", ".json"}:
        raise ConfigError(
            f"a configuration is a .yaml, .yml or .json file, not {path.suffix or 'a bare name'!r}",
            where=str(path),
        )
    text = _read_text(path)
    document = _json(text, str(path)) if path.suffix.lower() == ".json" else _yaml(text, str(path))
    document.places[()] = f"{path}:1"
    return document


def parse_value(text: str, where: str) -> Any:
    """One value in YAML, as ``--set`` takes it."""
    node = _compose(text, where)
    return None if node is None else _Builder(where, numbered=False).build(node, (), 0)


def _read_text(path: Path) -> str:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            # Opening a pipe would wait for ever.
            raise ConfigError("cannot be read: it is a folder, a pipe or a device", where=str(path))
        if facts.st_size > MAX_BYTES:
            raise ConfigError(
                f"this is {facts.st_size} bytes long; a configuration has at most {MAX_BYTES}"
                " (is it a data file?)",
                where=str(path),
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError("no such configuration file; check the path", where=str(path)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot be read: {reason}", where=str(path)) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8 text; save it as UTF-8", where=f"{path}:{line}") from None


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark and name != "--set" else name
        raise ConfigError(
            f"not valid YAML: {error.problem or error.context}", where=where
        ) from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        where = name if name == "--set" else f"{name}:{line}"
        raise ConfigError(
            f"not valid YAML: {error.reason}; remove that character", where=where
        ) from None
    except RecursionError:
        raise ConfigError("nested too deeply", where=name) from None


def _yaml(text: str, name: str) -> Document:
    node = _compose(text, name)
    if node is None:
        raise ConfigError("the file is empty; see `hbo --help` for an example", where=f"{name}:1")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError("must be a mapping of settings (key: value)", where=f"{name}:1")
    builder = _Builder(name)
    return Document(cast("dict[str, Any]", builder.build(node, (), 0)), builder.places)


def _json(text: str, name: str) -> Document:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in items:
            if key in values:
                raise ConfigError(
                    f"{key!r} is given twice; keep one", where=_json_place(text, key, name)
                )
            values[key] = value
        return values

    def constant(word: str) -> Any:
        raise ConfigError(f"{word} is no JSON number", where=f"{name}:1")

    try:
        values = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_int=_whole_number
        )
        _check_json(values)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", where=f"{name}:{error.lineno}") from None
    except RecursionError:
        raise ConfigError("nested too deeply", where=f"{name}:1") from None
    except ValueError as error:
        raise ConfigError(f"not usable JSON: {error}", where=f"{name}:1") from None
    if not isinstance(values, dict):
        raise ConfigError('must be an object of settings ({"key": value})', where=f"{name}:1")
    return Document(values, _json_places(text, name) if len(text) <= MAX_PLACED_BYTES else {})


def _check_json(value: Any) -> None:
    """Refuse what ``_Builder`` refuses in YAML: depth, and characters that no file can hold."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                _plain_text(item)
        if not below:
            return
        level = below
    raise RecursionError


def _whole_number(text: str, base: int = 10) -> int:
    """A whole number of at most 64 bits; checked by length first, as reading digits is slow."""
    number = int(text, base) if len(text) <= 100 else MAX_WHOLE
    if abs(number) >= MAX_WHOLE:
        raise ValueError(f"the whole number {text[:20]}... is too large; at most 64 bits fit")
    return number


def _plain_text(text: str) -> str:
    """Text that a path and a file can hold."""
    if not text.isascii() or "\0" in text:
        found = _NO_TEXT.search(text)
        if found is not None:
            raise ValueError(f"{found[0]!a} is no character of a text; remove it")
    return text


def _json_place(text: str, key: str, name: str) -> str:
    """Line of the second time that a key is written."""
    hits = [
        match.start() for match in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)), text)
    ]
    return f"{name}:{text[: hits[1]].count(chr(10)) + 1 if len(hits) > 1 else 1}"


def _json_places(text: str, name: str) -> dict[Path_, str]:
    """Lines of a JSON text, read as YAML (of which it is a part, tabs between tokens apart)."""
    try:
        node = yaml.compose(text.replace("\t", " "), Loader=_Loader)
        builder = _Builder(name)
        builder.build(cast("yaml.Node", node), (), 0)
    except (yaml.YAMLError, ConfigError, RecursionError, ValueError):
        return {}
    return builder.places


class _Builder:
    """Plain values from a node tree; notes the line of each path on the way."""

    def __init__(self, name: str, numbered: bool = True) -> None:
        self.name = name
        self.numbered = numbered
        self.places: dict[Path_, str] = {}
        self.nodes = 0

    def at(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.numbered else self.name

    def count(self, node: yaml.Node, depth: int) -> None:
        """One node more, aliases counted as often as they are used."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise ConfigError("nested too deeply or too large (aliases?)", where=self.at(node))

    def build(self, node: yaml.Node, path: Path_, depth: int) -> Any:
        self.count(node, depth)
        if node.tag not in PLAIN_TAGS:
            raise ConfigError(
                f"the tag {node.tag!r} is not allowed; write plain values", where=self.at(node)
            )
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self.places.setdefault((*path, str(index)), self.at(item))
                items.append(self.build(item, (*path, str(index)), depth + 1))
            return items
        return self.scalar(cast("yaml.ScalarNode", node))

    def mapping(self, node: yaml.MappingNode, path: Path_, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError("a key must be plain text", where=self.at(key_node))
            if key_node.tag == _MERGE:
                bases = (
                    value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                )
                for base in reversed(bases):
                    self.count(base, depth)
                    if not isinstance(base, yaml.MappingNode):
                        raise ConfigError("<< takes a mapping", where=self.at(key_node))
                    merged.update(self.mapping(base, path, depth + 1))
                continue
            key = self.text(key_node)
            if key in values:
                raise ConfigError(f"{key!r} is given twice; keep one", where=self.at(key_node))
            self.places[(*path, key)] = self.at(key_node)
            values[key] = self.build(value_node, (*path, key), depth + 1)
        return {**merged, **values}

    def text(self, node: yaml.ScalarNode) -> str:
        try:
            return _plain_text(str(node.value))
        except ValueError as error:
            raise ConfigError(str(error), where=self.at(node)) from None

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text = self.text(node)
        kind = node.tag.rsplit(":", 1)[-1]
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return text.lower() in {"yes", "true", "on"}
            if kind == "int":
                digits = text.replace("_", "").lower()
                base = 0 if digits.lstrip("+-").startswith(("0x", "0b")) else 10
                return _whole_number(digits, base)
            if kind == "float":
                digits = text.replace("_", "").lower()
                return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            problem = f"{text[:40]!r} is no {kind}, or too large a number (64 bits)"
            raise ConfigError(problem, where=self.at(node)) from None
        return text
