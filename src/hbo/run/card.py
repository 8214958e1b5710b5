"""The model card of a run's result."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hbo.config import Config
from hbo.config.secrets import hide
from hbo.reports.text import visible
from hbo.run.environment import versions
from hbo.run.files import write_whole


def write_card(config: Config, summary: Mapping[str, Any], folder: Path) -> None:
    """Write ``README.md`` with the metadata that a hub reads: base model, data, what was reached.

    Args:
        config: Of the run.
        summary: ``summary.json``'s content.
        folder: The saved model.
    """
    write_whole(folder / "README.md", card_text(config, summary))


def card_text(config: Config, summary: Mapping[str, Any]) -> str:
    """The card's text."""
    model = hide(config.model)
    adapter = bool(config.tuning.get("use_peft"))
    head = {
        "base_model": model,
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["hbo", "sft", f"policy:{config.balance.policy}", *(["lora"] if adapter else [])],
    }
    rows = [_row(name, row, summary) for name, row in summary["subsets"].items()]
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_cell(model)} fine-tuned on {len(rows)} datasets",
        "",
        f"Supervised fine-tuning with the mixing policy `{config.balance.policy}` of `hbo`:"
        f" {summary['steps']} steps, {summary['draws']} examples, seed {summary['seed']}."
        " Loss is in nats per response token, on test examples that were never trained on.",
        "",
        "| dataset | examples | draws | passes | loss before | loss after |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Made with {made}.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, row: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    cells = [
        _cell(name),
        str(row["examples"]),
        str(row["draws"]),
        f"{row['passes']:.2f}",
        _number(row["holdout_loss_before"]),
        _number(row["holdout_loss_after"]),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _cell(text: str) -> str:
    """A name that cannot break the table or the page."""
    shown = html.escape(visible(text), quote=False)
    return re.sub(r"([\\|`\[\]*_!])", r"\\\1", shown)
