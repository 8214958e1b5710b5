"""``hbo plan``: check everything, train nothing, show what would happen."""

from __future__ import annotations

import sys

from hbo.cli.options import AsJson, ConfigFile, Overrides
from hbo.cli.output import console, print_json, quiet_libraries, tell


def plan(config: ConfigFile, set_: Overrides = None, as_json: AsJson = False) -> None:
    """Check a configuration and its data; show what each dataset would get. Trains nothing."""
    from hbo.config import load_config
    from hbo.run.plan import make_plan
    from hbo.run.tables import print_plan

    loaded = load_config(config, set_ or ())
    with quiet_libraries(stdout=True):
        result = make_plan(loaded, tell if sys.stderr.isatty() else None)
    if as_json:
        print_json(result.to_json())
    else:
        print_plan(result, console())
