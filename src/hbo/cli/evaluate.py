"""``hbo evaluate``: held-out loss and accuracy of a run's model, and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hbo.cli.options import AsJson, RunFolder
from hbo.cli.output import console, print_json, quiet_libraries


def evaluate(run: RunFolder, as_json: AsJson = False) -> None:
    """Held-out loss, perplexity and accuracy of a run's model, per dataset; and benchmarks."""
    from hbo.run.evaluate import evaluate_run
    from hbo.run.progress import hidden_bars
    from hbo.run.stop import listening
    from hbo.run.tables import print_evaluation
    from hbo.run.world import is_main, process_group

    quiet = quiet_libraries(stdout=as_json or not is_main())
    with listening(), quiet, hidden_bars(), process_group():
        result = evaluate_run(run)
    if not is_main():
        return
    if as_json:
        print_json(result)
        return
    screen = console()
    print_evaluation({key: result[key] for key in ("subsets", "macro")}, screen)
    for line in benchmark_lines(result.get("benchmarks")):
        screen.print(line, soft_wrap=True, markup=False)


def benchmark_lines(found: Mapping[str, Any] | None) -> list[str]:
    """The benchmarks' means, the paper's two averages, and tasks that are in neither, in per cent.

    Args:
        found: ``benchmarks`` of ``evaluation.json``.
    """
    if found is None:
        return []
    from hbo.evaluation.benchmarks import BENCHMARKS
    from hbo.run.tables import number

    means, tasks = found["means"], found["tasks"]
    lines = [
        f"{name}: {100 * mean:.2f} %  ("
        + ", ".join(
            f"{language} {100 * tasks[task][BENCHMARKS[name].metric]:.2f}"
            for language, task in BENCHMARKS[name].tasks.items()
        )
        + ")"
        for name, mean in means.items()
    ]
    for key, count in (("mu_ml", "five multilingual"), ("mu_mt", "four multitask")):
        if found[key] is not None:
            lines.append(f"{key}: {100 * found[key]:.2f} %  (mean of the {count} benchmarks)")
    for name in found["asked"]:
        if name not in means:
            shown = (f"{metric} {number(value)}" for metric, value in tasks.get(name, {}).items())
            lines.append(f"{name}: {', '.join(shown) or 'see evaluation.json'}")
    return lines
