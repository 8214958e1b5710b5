"""The mixtures of languages.yaml and tongues.yaml as JSON Lines: exam questions, to be finished.

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
    "languages": {
        "hungarian": 640,
        "polish": 420,
        "turkish": 280,
        "italian": 180,
        "portuguese": 120,
        "german": 80,
        "french": 50,
        "spanish": 32,
    },
    "tongues": {
        "croatian": 640,
        "albanian": 420,
        "lithuanian": 256,
        "macedonian": 180,
        "bulgarian": 120,
        "vietnamese": 80,
        "serbian": 50,
        "arabic": 32,
    },
}
"""Mixture -> language -> records to train on."""
HELD_OUT = 64
LONGEST = {"languages": 120, "tongues": 80}
"""Characters of a question: a model of English spells other scripts by the byte."""
WORDS = 3
"""Of a question that are given."""
FOLDER = Path("data/compare")

Record = dict[str, list[dict[str, str]]]


def question(record: Record, language: str, longest: int) -> Record | None:
    """A question to be finished; ``None`` where it is too long or too short."""
    text = record["prompt"][-1]["content"].partition("\nA. ")[0].strip()
    words = text.split()
    if len(text) > longest or len(words) <= 2 * WORDS:
        return None
    prompt = f"Finish this question in {language.capitalize()}: {' '.join(words[:WORDS])}"
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": " ".join(words[WORDS:])}],
    }


def write(language: str, size: int, longest: int, folder: Path) -> None:
    """Write the two files of a language."""
    lines = asset_data_files("exams", language).read_text(encoding="utf-8").splitlines()
    found = (question(json.loads(line), language, longest) for line in lines)
    records = list(dict.fromkeys(json.dumps(each, ensure_ascii=False) for each in found if each))
    parts = {"": records[HELD_OUT : HELD_OUT + size], "-heldout": records[:HELD_OUT]}
    for ending, part in parts.items():
        text = "".join(f"{record}\n" for record in part)
        (folder / f"{language}{ending}.jsonl").write_text(text, encoding="utf-8")
    print(f"{language}: {len(parts[''])} of {size} records, {len(parts['-heldout'])} held out")  # noqa: T201


def main() -> None:
    """Write the files of both mixtures."""
    for mixture, languages in SIZES.items():
        folder = FOLDER / mixture
        folder.mkdir(parents=True, exist_ok=True)
        for language, size in languages.items():
            write(language, size, LONGEST[mixture], folder)


if __name__ == "__main__":
    main()
