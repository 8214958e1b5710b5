"""What a training run bought: held-out loss and accuracy per subset, and standard benchmarks."""

from hbo.evaluation.examples import HeldoutExample, find_options
from hbo.evaluation.harness import BENCHMARKS, run_harness
from hbo.evaluation.heldout import HeldoutResult, Macro, evaluate_heldout, macro

__all__ = [
    "BENCHMARKS",
    "HeldoutExample",
    "HeldoutResult",
    "Macro",
    "evaluate_heldout",
    "find_options",
    "macro",
    "run_harness",
]
