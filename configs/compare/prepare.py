"""The mixture of languages.yaml as JSON Lines: exam questions, answered by their choices.

    python configs/compare/prepare.py

From the asset `exams` (a package index is enough). The prompt is the question, the response its
choices as they stand: some forty tokens in the language, where the answer's letter alone would show
little of it. Sizes fall from 640 to 50. Records without choices are left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from hbo.assets import asset_data_files

SIZES = {
    "hungarian": 640,
    "polish": 480,
    "turkish": 360,
    "italian": 260,
    "portuguese": 180,
    "german": 120,
    "french": 80,
    "spanish": 50,
}
"""Language -> records, held-out ones included."""
FOLDER = Path("data/compare/languages")


def split(record: dict[str, list[dict[str, str]]]) -> dict[str, list[dict[str, str]]] | None:
    """A question and its choices; ``None`` where there are none."""
    text = record["prompt"][-1]["content"].removesuffix("Answer:").strip()
    question, mark, choices = text.partition("\nA. ")
    if not mark or not question.strip():
        return None
    return {
        "prompt": [{"role": "user", "content": question.strip()}],
        "completion": [{"role": "assistant", "content": f"A. {choices}"}],
    }


def main() -> None:
    """Write a file for each language."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for language, size in SIZES.items():
        lines = asset_data_files("exams", language).read_text(encoding="utf-8").splitlines()
        records = [found for line in lines if (found := split(json.loads(line))) is not None]
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records[:size])
        (FOLDER / f"{language}.jsonl").write_text(text, encoding="utf-8")
        print(f"{language}: {min(size, len(records))} records")  # noqa: T201


if __name__ == "__main__":
    main()
