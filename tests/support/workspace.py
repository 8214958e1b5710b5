"""A folder with a tiny model, small datasets and a configuration, as a user would have them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml

from tests.support.tiny import save_tiny

CONFIG: dict[str, Any] = {
    "model": "model",
    "datasets": {
        "german": {"data_files": "german.jsonl"},
        "arabic": {"data_files": "arabic.jsonl"},
    },
    "difficulty": {"metric": "length", "groups": 2, "cache_dir": "scores"},
    "balance": {"policy": "hbo", "update_interval": 2, "lag": 1, "probe_examples": 2},
    "training": {"max_steps": 4, "per_device_train_batch_size": 2, "logging_steps": 2},
    "output_dir": "run",
    "seed": 7,
}


def record(number: int, answer: str = "A") -> dict[str, Any]:
    """One chat record."""
    return {
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records, one a line."""
    path.write_text("".join(f"{json.dumps(item)}\n" for item in records), encoding="utf-8")
    return path


def make_workspace(folder: Path) -> Path:
    """Write the model, two datasets of 24 and 12 records, and ``config.yaml``."""
    save_tiny(folder / "model")
    write_jsonl(folder / "german.jsonl", [record(n, "ABCD"[n % 4]) for n in range(24)])
    write_jsonl(folder / "arabic.jsonl", [record(n + 100, "yes no"[:3]) for n in range(12)])
    write_config(folder)
    return folder


def write_config(folder: Path, **changes: Any) -> Path:
    """Write ``config.yaml``; keyword arguments replace or (as ``None``) remove top-level keys."""
    values = {**copy.deepcopy(CONFIG), **changes}
    values = {key: value for key, value in values.items() if value is not None}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path
