"""Made-up data of the paper's nine benchmarks, in the columns and splits of their hub datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hbo.evaluation import BENCHMARKS

TOPICS = (
    "Business & Management",
    "Finance",
    "Government & Controls",
    "Industry",
    "Tax & Accounting",
    "Technology",
)


def subjects() -> list[str]:
    """The 57 subjects of MMLU, from the harness's own task names."""
    from hbo.evaluation.harness import _manager

    tasks = _manager(["mmlu"]).all_subtasks
    return [task.removeprefix("mmlu_") for task in tasks if task.startswith("mmlu_")]


def write_split(
    folder: Path, dataset: str, name: str | None, split: str, rows: Iterable[dict[str, Any]]
) -> None:
    """One split as a plain file."""
    path = folder / dataset / (name or "") / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def languages(benchmark: str) -> list[str]:
    return list(BENCHMARKS[benchmark].tasks)


def gsm8k(
    folder: Path, rows: Iterable[tuple[str, str]] = (("1 + 1?", "2"), ("2 + 2?", "4"))
) -> None:
    answers = ({"question": q, "answer": f"Count.\n#### {a}"} for q, a in rows)
    write_split(folder, "openai/gsm8k", "main", "test", answers)


def mgsm(folder: Path, rows: Iterable[tuple[str, int]] = (("1 + 1?", 2), ("3 + 2?", 5))) -> None:
    rows = list(rows)
    for language in languages("mgsm"):
        found = (
            {"question": q, "answer": None, "answer_number": a, "equation_solution": None}
            for q, a in rows
        )
        write_split(folder, "juletxara/mgsm", language, "test", found)


def xcopa(folder: Path) -> None:
    for language in languages("xcopa"):
        rows = [
            {
                "premise": f"Item {number} fell.",
                "choice1": f"It broke {number} times.",
                "choice2": f"Rain came on day {number * 7}.",
                "question": ("cause", "effect")[number % 2],
                "label": number // 2 % 2,
                "idx": number,
                "changed": False,
            }
            for number in range(5)
        ]
        write_split(folder, "cambridgeltl/xcopa", language, "test", rows)


def xstorycloze(folder: Path) -> None:
    for language in languages("xstorycloze"):
        rows = [
            {
                "story_id": str(number),
                **{f"input_sentence_{n}": f"Sentence {n} of {number}." for n in (1, 2, 3, 4)},
                "sentence_quiz1": "It ended well.",
                "sentence_quiz2": "It ended badly.",
                "answer_right_ending": 1 + number % 2,
            }
            for number in range(2)
        ]
        write_split(folder, "juletxara/xstory_cloze", language, "eval", rows)


def xnli(folder: Path) -> None:
    for language in languages("xnli"):
        rows = [
            {"premise": f"There are {n} dogs.", "hypothesis": "There is a dog.", "label": n % 3}
            for n in range(3)
        ]
        write_split(folder, "facebook/xnli", language, "validation", rows)


def mmlu(folder: Path) -> None:
    for number, subject in enumerate(subjects()):
        row = {
            "question": f"What of {subject}?",
            "subject": subject,
            "choices": ["one", "two", "three", "four"],
            "answer": number % 4,
        }
        write_split(folder, "cais/mmlu", subject, "test", [row])


def mmmlu(folder: Path) -> None:
    """As on the hub: a card that names a CSV file for each language."""
    home = folder / "openai/MMMLU"
    (home / "test").mkdir(parents=True)
    card = ["---", "configs:"]
    for language in languages("mmmlu"):
        name = BENCHMARKS["mmmlu"].tasks[language].removeprefix("mmmlu_").upper()
        file = f"test/mmlu_{name.replace('_', '-')}.csv"
        card += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {file}"]
        with (home / file).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["", "Question", "A", "B", "C", "D", "Answer", "Subject"])
            for number, subject in enumerate(subjects()):
                answer = "ABCD"[number % 4]
                writer.writerow([number, f"{subject}?", "1", "2", "3", "4", answer, subject])
    (home / "README.md").write_text("\n".join([*card, "---", ""]), encoding="utf-8")


def multifin(folder: Path) -> None:
    rows = [
        {"id": number, "lang": ("English", "Danish")[number % 2], "text": f"Headline {number}",
         "label": TOPICS[number // 2]}
        for number in range(12)
    ]  # fmt: skip
    write_split(folder, "awinml/MultiFin", "all_languages_highlevel", "test", rows)


def medmcqa(folder: Path) -> None:
    rows = [
        {"question": f"Dose {n}?", "opa": "1", "opb": "2", "opc": "3", "opd": "4", "cop": n}
        for n in range(4)
    ]
    write_split(folder, "openlifescienceai/medmcqa", None, "validation", rows)


WRITERS: dict[str, Callable[[Path], None]] = {
    "mmmlu": mmmlu,
    "mgsm": mgsm,
    "xcopa": xcopa,
    "xstorycloze": xstorycloze,
    "xnli": xnli,
    "mmlu": mmlu,
    "multifin": multifin,
    "gsm8k": gsm8k,
    "medmcqa": medmcqa,
}
