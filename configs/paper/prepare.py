"""The paper's two mixtures as JSON Lines, one file for each subset, for the recipes in this folder.

    python configs/paper/prepare.py multilingual
    python configs/paper/prepare.py multitask --files data/hub

Sources come from the Hugging Face Hub (LMSYS-Chat-1M asks for an agreement there), or from local
copies below --files, laid out as docs/benchmarks.md says. A mixture is in memory while it is made:
a few GB. The paper names its sources, their sizes and the shares of 20 % and 10 %; the rest is our
choice:

- languages by the sources' own columns; of Arabic and Chinese the standard language of Aya;
- of a conversation the first question and its answer; none that its source marks as toxic;
- records without a question or an answer are left out; of records with the same question the first
  is kept;
- of a subset the share with the lowest hashes of their questions: the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbo.errors import HBOError

Pair = tuple[str, str]


def conversation(row: dict[str, Any]) -> Pair | None:
    """WildChat and LMSYS-Chat-1M: the first question and its answer."""
    if row.get("toxic") or any(each.get("flagged") for each in row.get("openai_moderation") or ()):
        return None
    turns = row["conversation"]
    if [turn["role"] for turn in turns[:2]] != ["user", "assistant"]:
        return None
    return turns[0]["content"], turns[1]["content"]


def shared(row: dict[str, Any]) -> Pair | None:
    """UltraMedical: turns in ShareGPT's words."""
    turns = row["conversations"]
    if [turn["from"] for turn in turns[:2]] != ["human", "gpt"]:
        return None
    return turns[0]["value"], turns[1]["value"]


def instruction(row: dict[str, Any]) -> Pair:
    """The finance set: an instruction and, in some forms of it, an input below."""
    parts = [row["instruction"], row.get("input")]
    return "\n\n".join(part for part in parts if part), row["output"]


@dataclass(frozen=True)
class Source:
    """A dataset of the hub, and which of its rows a subset takes.

    Args:
        dataset: Its id.
        pair: Row -> (question, answer), or None for a row that is left out.
        where: Column and value that a row must have.
    """

    dataset: str
    pair: Callable[[dict[str, Any]], Pair | None]
    where: tuple[str, str] | None = None


def aya(code: str) -> Source:
    """A language of Aya."""
    return Source(
        "CohereForAI/aya_dataset",
        lambda row: (row["inputs"], row["targets"]),
        ("language_code", code),
    )


def wildchat(language: str) -> Source:
    """A language of WildChat, in its public form without toxic conversations."""
    return Source("allenai/WildChat-1M", conversation, ("language", language))


MIXTURES: dict[str, tuple[float, dict[str, list[Source]]]] = {
    "multilingual": (
        0.2,
        {
            language.lower(): [aya(code), wildchat(language)]
            for language, code in {
                "English": "eng",
                "Chinese": "zho",
                "Russian": "rus",
                "Spanish": "spa",
                "Arabic": "arb",
                "German": "deu",
                "Hindi": "hin",
                "Swahili": "swh",
            }.items()
        },
    ),
    "multitask": (
        0.1,
        {
            "general": [
                wildchat("English"),
                Source("lmsys/lmsys-chat-1m", conversation, ("language", "English")),
            ],
            "math": [Source("meta-math/MetaMathQA", lambda row: (row["query"], row["response"]))],
            "finance": [Source("DeividasM/financial-instruction-aq22", instruction)],
            "medical": [Source("TsinghuaC3I/UltraMedical", shared)],
        },
    ),
}


def rows_of(dataset: str, files: Path | None) -> Iterable[dict[str, Any]]:
    """The training rows of a dataset, from the hub or from a local copy."""
    import datasets

    if files is None:
        return datasets.load_dataset(dataset, split="train")
    from hbo.evaluation.local_files import read_local

    return read_local(files, dataset, None)["train"]


def collect(
    subsets: dict[str, list[Source]], rows: Callable[[str], Iterable[dict[str, Any]]]
) -> dict[str, dict[str, str]]:
    """Question -> answer of each subset; every dataset is read once."""
    found: dict[str, dict[str, str]] = {name: {} for name in subsets}
    for dataset in dict.fromkeys(each.dataset for sources in subsets.values() for each in sources):
        takers = [
            (found[name], source)
            for name, sources in subsets.items()
            for source in sources
            if source.dataset == dataset
        ]
        for row in rows(dataset):
            for taken, source in takers:
                if source.where is None or row[source.where[0]] == source.where[1]:
                    question, answer = source.pair(row) or ("", "")
                    if question and question.strip() and answer and answer.strip():
                        taken.setdefault(question.strip(), answer.strip())
    return found


def share_of(found: dict[str, str], share: float) -> list[Pair]:
    """A share of all questions, by their hashes, with their answers."""
    order = sorted(found, key=lambda question: hashlib.sha256(question.encode()).digest())
    return [(question, found[question]) for question in order[: round(share * len(order))]]


def write(path: Path, pairs: Iterable[Pair]) -> None:
    """One record a line, as TRL's prompt and completion."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for question, answer in pairs:
            record = {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            }
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Write a mixture; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mixture", choices=MIXTURES)
    parser.add_argument("--files", type=Path, help="folder of local copies, by hub id")
    parser.add_argument("--output", type=Path, default=Path("data/paper"))
    parser.add_argument("--share", type=float, help="of each subset (20 %% and 10 %%)")
    given = parser.parse_args(arguments)
    usual, subsets = MIXTURES[given.mixture]
    share = usual if given.share is None else given.share
    if not 0 < share <= 1:
        parser.error(f"--share is {share}; must be above 0 and at most 1")
    try:
        found = collect(subsets, lambda dataset: rows_of(dataset, given.files))
    except HBOError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    for name in subsets:
        kept = share_of(found[name], share)
        path = given.output / given.mixture / f"{name}.jsonl"
        write(path, kept)
        sys.stdout.write(f"{path}: {len(kept)} of {len(found[name])} records\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
