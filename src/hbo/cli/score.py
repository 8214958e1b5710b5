"""``hbo score``: difficulty scores, cached."""

from __future__ import annotations

from hbo.cli.options import AsJson, ConfigFile, Overrides
from hbo.cli.output import console, print_json, quiet_libraries, tell


def score(config: ConfigFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Score the difficulty of every example; cached, and resumed where it was cut off.

    Under torchrun or accelerate launch, all processes share the work.
    """
    from hbo.config import load_config
    from hbo.run.progress import hidden_bars
    from hbo.run.score import score_run
    from hbo.run.stop import listening
    from hbo.run.tables import print_scores
    from hbo.run.world import is_main, process_group

    loaded = load_config(config, set_ or ())
    with (
        listening("what was scored is kept; run again to go on"),
        quiet_libraries(stdout=as_json or not is_main()),
        hidden_bars(),
        process_group(),
    ):
        result = score_run(loaded, tell) if as_json else score_run(loaded)
    if not is_main():
        return
    if as_json:
        print_json(result)
    else:
        print_scores(result, console())
