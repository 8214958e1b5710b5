"""Damage to files and values, and names that a careless program would trip over."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

EVIL_NAMES = (
    "../../escape",
    "/etc/evil",
    "a/b\\c",
    "..",
    "CON:nul*?",
    "</script><img src=x onerror=alert(1)>",
    "line\nbreak: [red]x[/red]",
    "---\nlicence: stolen\n---",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "العربية",
    "| cell | `code` [link](http://x)",
    "{{ 7 * 7 }}{% raw %}",
    "long" * 200,
)
"""Names of subsets that are allowed and must stay names."""

NASTY: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**400,
    -(10**18),
    2**63,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "\ud800",
    "<script>alert(1)</script>",
    "\x1b[31m",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    "9" * 5000,
)
"""Values that may stand anywhere in a damaged JSON file."""


@st.composite
def damaged(draw: st.DrawFn, value: Any, times: int = 2) -> Any:
    """A copy of plain values with some replaced, removed or doubled, at any depth."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, times))):
        value = _damage(draw, value)
    return value


def _damage(draw: st.DrawFn, value: Any) -> Any:
    inside = isinstance(value, dict | list) and bool(value)
    if not inside or draw(st.integers(0, 9)) == 0:
        return copy.deepcopy(draw(st.sampled_from(NASTY)))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 5)) == 0:
        del value[key]
    else:
        value[key] = _damage(draw, value[key])
    return value


@st.composite
def damaged_bytes(draw: st.DrawFn, text: bytes) -> bytes:
    """A text cut, with bytes changed in it, or with another text in its middle."""
    at = draw(st.integers(0, len(text)))
    kind = draw(st.sampled_from(("cut", "flip", "insert", "drop")))
    if kind == "cut":
        return text[:at]
    if kind == "flip":
        return text[:at] + draw(st.binary(min_size=1, max_size=3)) + text[at + 1 :]
    if kind == "drop":
        return text[:at] + text[at + draw(st.integers(1, 40)) :]
    pieces = (b"\0", b"\xff\xfe", b"{", b"]", b'"', b"[" * 300, b"9" * 6000, b"\\ud800", b"1e999")
    return text[:at] + draw(st.sampled_from(pieces)) + text[at:]


def json_lines(events: list[Any]) -> bytes:
    """Events as a run log holds them, NaN and half surrogates included."""
    lines = [json.dumps(event, ensure_ascii=True) for event in events]
    return "".join(f"{line}\n" for line in lines).encode()
