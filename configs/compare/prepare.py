"""The mixture of languages.yaml as JSON Lines: exam questions in eight languages, to be finished.

    python configs/compare/prepare.py

From the asset `exams` (a package index is enough). The prompt is a question's first three words,
the response its other words, without the choices. Sizes fall from 640 to 32, where there are so
many.
"""

from __future__ import annotations

import json
from pathlib import Path

from hbo.assets import asset_data_files

SIZES = {
    "hungarian": 640,
    "polish": 420,
    "turkish": 280,
    "italian": 180,
    "portuguese": 120,
    "german": 80,
    "french": 50,
    "spanish": 32,
}
"""Language -> records to train on."""
HELD_OUT = 64
LONGEST = 120
"""Characters of a question."""
WORDS = 3
"""Of a question that are given."""
FOLDER = Path("data/compare/languages")

Record = dict[str, list[dict[str, str]]]


def question(record: Record, language: str) -> Record | None:
    """A question to be finished; ``None`` where it is too long or too short."""
    text = record["prompt"][-1]["content"].partition("\nA. ")[0].strip()
    words = text.split()
    if len(text) > LONGEST or len(words) <= 2 * WORDS:
        return None
    prompt = f"Finish this question in {language.capitalize()}: {' '.join(words[:WORDS])}"
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": " ".join(words[WORDS:])}],
    }


def main() -> None:
    """Write two files for each language."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for language, size in SIZES.items():
        lines = asset_data_files("exams", language).read_text(encoding="utf-8").splitlines()
        found = (question(json.loads(line), language) for line in lines)
        texts = dict.fromkeys(json.dumps(each, ensure_ascii=False) for each in found if each)
        records = list(texts)
        parts = {"": records[HELD_OUT : HELD_OUT + size], "-heldout": records[:HELD_OUT]}
        for ending, part in parts.items():
            text = "".join(f"{record}\n" for record in part)
            (FOLDER / f"{language}{ending}.jsonl").write_text(text, encoding="utf-8")
        print(f"{language}: {len(parts[''])} of {size} records, {len(parts['-heldout'])} held out")  # noqa: T201


if __name__ == "__main__":
    main()
