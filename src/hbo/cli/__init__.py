"""The program ``hbo``: one command per file; everything heavy is imported inside the commands."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from hbo.cli.faults import Interrupted, explain
from hbo.run.stop import listening
from hbo.run.world import is_main, rank


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0: done; 2: the user's configuration or data; 1: the environment or a fault of ours; 130 and
    143: stopped by SIGINT and SIGTERM. 1 and 2 print one line on stderr, ``error: ...``;
    ``--debug``, before or after the command, shows the traceback as well.

    Args:
        argv: Arguments without the program's name; ``None`` takes the process's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"] or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a subset's name must not end the run.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader of our output has gone (`hbo plan ... | head`): nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Interrupted as stop:
        if is_main():
            print(f"stopped: {stop}", file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("stopped: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        status, text = explain(error)
        if is_main():
            sys.stderr.write(f"error: {text}\n")  # in one piece: ranks share the terminal
        elif status == 1:
            # Bad input is the same on all ranks and told once; what befalls one rank is told by it.
            sys.stderr.write(f"error: rank {rank()}: {text}\n")
        return status


def _run(arguments: list[str]) -> int:
    from hbo.cli.app import app
    from hbo.cli.output import calm_environment

    # From the first moment on: importing the libraries takes seconds.
    with listening(), calm_environment():
        result = app(args=arguments, standalone_mode=False, prog_name="hbo")
    sys.stdout.flush()
    return result if isinstance(result, int) else 0
