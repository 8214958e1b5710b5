"""A small evals-like wheel and a table of assets that uses it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from hbo.assets.catalogue import EVALS_DATA, Asset, Wheel

MEMBERS = {
    "sums/samples.jsonl": [
        {"input": [{"role": "user", "content": f"{i}+1?"}], "ideal": str(i + 1)} for i in range(20)
    ],
    "two/a.jsonl": [{"input": "Say a", "ideal": ["a", "A"]}],
    "two/b.jsonl": [{"prompt": "no such fields"}],
}


def write_wheel(folder: Path, name: str = "fakeevals", members=MEMBERS) -> tuple[Path, Wheel]:
    """A wheel that pip accepts, in `folder`, and its pin."""
    file = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        for member, rows in members.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            archive.writestr(zipfile.ZipInfo(f"{EVALS_DATA}/{member}"), text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return file, Wheel(name, "1.0", digest, file.stat().st_size)


def mixture(wheel: Wheel, name: str = "fake", *, every: bool = False) -> Asset:
    """A mixture of one subset, or (`every`) of whatever the wheel holds."""
    subsets = {} if every else {"sums": f"{EVALS_DATA}/sums/samples.jsonl"}
    return Asset(name, "mixture", "", "MIT", "1", room=1, wheels=(wheel,), subsets=subsets)
