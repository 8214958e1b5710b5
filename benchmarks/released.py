"""The difficulty scores of the paper's released code, called from a checkout of it.

The code of arXiv 2505.12300 has no licence: nothing of it is here, its functions are called.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hbo.difficulty.metrics import ResponseStatistics, difficulty_scores
from hbo.measure.examples import IGNORED, Encoded

METRICS = {
    "loss": "calculate_loss_per_example",
    "perplexity": "calculate_ppl_per_example",
    "ifd-loss": "calculate_ifd_per_example",
}
"""Our metric and their function. Their IFD is the ratio of mean losses, not of perplexities."""
TOLERANCE = {None: 1e-3, torch.bfloat16: 0.1}
"""How far values may be apart, relative to 1 + their size, by what is autocast to."""


@dataclass(frozen=True)
class Pair:
    """One example, as they take it and as we do.

    Args:
        theirs: ``instruction`` and ``output``.
        ours: The tokens that they make of it, with the same ones scored.
    """

    theirs: Mapping[str, str]
    ours: Encoded


def load(path: Path) -> ModuleType:
    """The released code's module of functions.

    Raises:
        SystemExit: It is not there, or needs a package that is not installed.
    """
    file = path / "utils.py"
    spec = importlib.util.spec_from_file_location("released_utils", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise SystemExit(f"{file} is not there; --released is a checkout of the released code")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SystemExit(f"{file} cannot be imported here: {error}") from error
    return module


def pairs(
    code: Any, texts: Sequence[tuple[str, str]], tokenizer: Any, max_length: int
) -> list[Pair]:
    """Examples of (instruction, output), those longer than ``max_length`` tokens left out."""
    template = code.PROMPT_DICT["prompt_no_input"]
    # Their response alone follows the last words of the template: those of the assistant.
    alone = template.rpartition("{instruction}")[2].lstrip()
    made = []
    for instruction, output in texts:
        ids, labels = _encoded(template.format(instruction=instruction), output, tokenizer)
        ours = Encoded(ids, labels, *_encoded(alone, output, tokenizer))
        if ours.num_tokens <= max_length:
            made.append(Pair({"instruction": instruction, "output": output}, ours))
    return made


def _encoded(prompt: str, output: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of prompt and output as one text, those past the prompt's own number labelled."""
    ids = np.array(tokenizer.encode(prompt + output), dtype=np.int32)
    labels = ids.copy()
    labels[: len(tokenizer.encode(prompt))] = IGNORED
    return ids, labels


def scores(
    code: Any, examples: Sequence[Pair], model: Any, tokenizer: Any, dtype: torch.dtype | None
) -> dict[str, np.ndarray]:
    """All three scores by our name of the metric; their limit of 4,096 tokens stays as it is."""
    context: AbstractContextManager[Any] = nullcontext()
    if dtype is not None:
        context = torch.autocast(model.device.type, dtype=dtype)
    with context:
        return {
            metric: np.array([float(score(pair.theirs, tokenizer, model)) for pair in examples])
            for metric, score in ((metric, getattr(code, name)) for metric, name in METRICS.items())
        }


def difference(
    statistics: ResponseStatistics, theirs: Mapping[str, np.ndarray], dtype: torch.dtype | None
) -> float:
    """How far our scores and theirs are apart at most, relative to 1 + their size.

    Raises:
        RuntimeError: Further than rounding explains.
    """
    found = 0.0
    for metric, values in theirs.items():
        apart = np.abs(difficulty_scores(metric, statistics) - values) / (1 + np.abs(values))
        found = max(found, float(apart.max()))
    if not found <= TOLERANCE[dtype]:
        raise RuntimeError(f"our scores and the released code's are {found:.3g} apart")
    return found
