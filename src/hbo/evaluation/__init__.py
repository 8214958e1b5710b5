"""What a training run bought: held-out loss and accuracy per subset, and standard benchmarks."""

from hbo.evaluation.benchmarks import BENCHMARKS, Benchmark, macro_average
from hbo.evaluation.examples import HeldoutExample, find_options
from hbo.evaluation.harness import Tasks, load_tasks, run_harness
from hbo.evaluation.heldout import HeldoutResult, Macro, evaluate_heldout, macro

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "HeldoutExample",
    "HeldoutResult",
    "Macro",
    "Tasks",
    "evaluate_heldout",
    "find_options",
    "load_tasks",
    "macro",
    "macro_average",
    "run_harness",
]
