"""Run logs with given probabilities, as a recorded run would have written them."""

from pathlib import Path

from hbo.runlog import RunLog


def write_recording(path, laws, steps, *, names=None, per_step=8, lag=1, last_step=None):
    """A log of updates after ``steps`` that went through ``laws``, one more than there are steps.

    Args:
        path: Of ``run.jsonl``; what was there is gone.
        laws: (U + 1, K, G) tables.
        steps: (U,) optimiser steps.
        names: Of the K subsets.
        per_step: Examples of a step.
        lag: Optimiser steps from an update to its first draw.
        last_step: Where the recorded run ended; ``None``: the log does not say.
    """
    Path(path).unlink(missing_ok=True)
    log = RunLog(path)
    names = names or [f"subset-{k}" for k in range(len(laws[0]))]
    for number, step in enumerate(steps):
        before, after = (
            {name: [float(value) for value in row] for name, row in zip(names, law, strict=True)}
            for law in laws[number : number + 2]
        )
        start = (step + lag) * per_step
        proposed = {"before": before, "after": after}
        log.write("update", step=step, effective_draw=start, proposed=proposed)
    if last_step is not None:
        log.write("step", step=last_step, draws=last_step * per_step)
    return Path(path)
