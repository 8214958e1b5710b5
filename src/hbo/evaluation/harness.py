"""Standard benchmarks through lm-evaluation-harness, the tool that the paper measures with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hbo.errors import ConfigError, EnvironmentProblem

BENCHMARKS: Mapping[str, tuple[str, ...]] = {
    # Multilingual: those of the paper's eight languages that the harness has; which ones the paper
    # used it does not say, but for MGSM and XCOPA, where its numbers tell.
    "mmmlu": tuple(
        f"mmmlu_{locale}" for locale in ("ar_xy", "de_de", "es_la", "hi_in", "sw_ke", "zh_cn")
    ),
    "mgsm": tuple(f"mgsm_direct_{language}" for language in ("en", "es", "de", "ru", "sw", "zh")),
    "xcopa": ("xcopa_sw", "xcopa_zh"),
    "xstorycloze": tuple(
        f"xstorycloze_{language}" for language in ("ar", "en", "es", "hi", "ru", "sw", "zh")
    ),
    "xnli": tuple(
        f"xnli_{language}" for language in ("ar", "de", "en", "es", "hi", "ru", "sw", "zh")
    ),
    # Multitask. The paper's fourth, MultiFin (finance), is not among the harness's tasks.
    "mmlu": ("mmlu",),
    "gsm8k": ("gsm8k",),
    "medmcqa": ("medmcqa",),
}
"""The paper's benchmarks -> task names of lm-eval 0.4.13, asked without worked examples."""


def run_harness(
    model_dir: str | Path,
    benchmarks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int | str = 8,
    apply_chat_template: bool = False,
    device: str | None = None,
    seed: int = 42,
) -> dict[str, dict[str, float]]:
    """Run benchmarks on a saved model, zero-shot.

    Needs the extra `eval` and, for most tasks, the Hugging Face Hub.

    Args:
        model_dir: A checkpoint folder or hub id.
        benchmarks: Names in `BENCHMARKS`, or task names of the harness as they are.
        limit: Use the first so many examples of each task; for trials.
        batch_size: Sequences a batch, or "auto".
        apply_chat_template: Ask through the tokenizer's chat template.
        device: Such as "cpu" or "cuda:0"; None: the harness's choice.
        seed: Of the harness's few-shot choices and of torch.

    Returns:
        Task name -> metric -> value, standard errors included, as the harness names them.

    Raises:
        ConfigError: No benchmark given, or one that the harness does not have.
        EnvironmentProblem: lm-eval is not installed, or a dataset cannot be loaded.
    """
    if not benchmarks:
        raise ConfigError(f"no benchmark given; there are: {', '.join(BENCHMARKS)}")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise EnvironmentProblem(
            "benchmarks need lm-evaluation-harness, which is not installed: pip install 'hbo[eval]'"
        ) from None
    tasks = [task for name in benchmarks for task in BENCHMARKS.get(name, (name,))]
    manager = TaskManager()
    known = set(manager.all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise ConfigError(
            f"lm-evaluation-harness has no task {unknown[0]!r}; benchmarks by name: "
            f"{', '.join(BENCHMARKS)}; `lm_eval --tasks list` shows the rest"
        )
    try:
        found: Any = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model_dir)},
            tasks=tasks,
            num_fewshot=0,
            limit=limit,
            batch_size=batch_size,
            device=device,
            apply_chat_template=apply_chat_template,
            log_samples=False,
            task_manager=manager,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
        )
    except (ConnectionError, OSError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EnvironmentProblem(f"lm-evaluation-harness cannot load its data: {text}") from error
    return numbers_of(found["results"])


def numbers_of(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The numbers in the harness's results; aliases and other texts left out.

    Example:
        >>> numbers_of({"xcopa_sw": {"alias": "sw", "acc,none": 0.5, "acc_stderr,none": "N/A"}})
        {'xcopa_sw': {'acc,none': 0.5}}
    """
    return {
        task: {
            metric: float(value)
            for metric, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for task, values in results.items()
    }
