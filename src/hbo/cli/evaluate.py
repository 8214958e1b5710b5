"""``hbo evaluate``: held-out loss and accuracy of a run's model, and benchmarks."""

from __future__ import annotations

from hbo.cli.options import AsJson, RunFolder
from hbo.cli.output import console, print_json, quiet_libraries


def evaluate(run: RunFolder, as_json: AsJson = False) -> None:
    """Held-out loss, perplexity and accuracy of a run's model, per dataset and together."""
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
    else:
        print_evaluation(result, console())
