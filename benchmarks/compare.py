"""``hbo compare`` for many runs on a few cores: processes that are forked ready, and kept states.

    python benchmarks/compare.py configs/compare/skills.yaml --seeds 3 --jobs 2 --below 26

The same runs, files and page as ``hbo compare`` makes of the same configuration, sooner (by how
much was not measured side by side). A process starts with its libraries loaded; and with
``--below N``, where nothing below layer N is trained, those layers run once for each text of the
mixture (``benchmarks/kept.py``), which changes losses by rounding only. Seconds of such runs are
not those of ``hbo compare``, and no claim of cost rests on them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

READY = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "trl.trainer.sft_trainer",
    "hbo.integrations.trl",
    "hbo.run.train",
    "hbo.run.score",
    "hbo.reports",
    "hbo.cli.app",
)
"""What a process has imported when it starts."""
STATES = Path("build/kept")
TOKENS = 1024
"""Padded tokens that the lower layers read at once."""


class Forked:
    """A process of ``multiprocessing``, as the fleet wants one."""

    def __init__(self, process: Any) -> None:
        self._process = process

    def join(self) -> int | None:
        """Wait for its end; its exit status."""
        self._process.join()
        return self.poll()

    def poll(self) -> int | None:
        """Its exit status, once it has one."""
        status: int | None = self._process.exitcode
        return status

    def send_signal(self, number: int, /) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)


def launch(
    context: Any,
    below: int | None,
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
) -> Forked:
    """Start ``hbo ARGUMENTS``; what it prints goes to the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    work = partial(command, list(arguments), below)
    return start(context, work, log, environment)


def start(
    context: Any, work: Callable[[], int], log: Path, environment: Mapping[str, str]
) -> Forked:
    """A process that does some work and exits with the status that it returns."""
    process = context.Process(target=alone, args=(work, str(log), dict(environment)))
    process.start()
    return Forked(process)


def alone(work: Callable[[], int], log: str, environment: dict[str, str]) -> None:
    """What a process does from its start to its end."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    import torch

    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    status = 1
    try:
        status = work()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(arguments: list[str], below: int | None) -> int:
    """``hbo ARGUMENTS``, on models whose lower layers' states are looked up."""
    from hbo.cli import main

    with kept_states(below):
        return main(arguments)


@contextmanager
def kept_states(below: int | None) -> Iterator[None]:
    """While open, every model that ``hbo`` loads looks the states below a layer up."""
    from hbo.evaluation import heldout, passes
    from hbo.measure import response
    from hbo.run import scores, train

    if below is None:
        yield
        return
    with ExitStack() as opened:
        for module in (train, scores):
            load = partial(loading, module.load_model, opened, below)
            replaced(opened, module, "load_model", load)
        # With keys and values of prompts or beginnings kept, no state could be looked up.
        slow = passes.slow_option_log_likelihoods
        replaced(opened, heldout, "option_log_likelihoods", lambda *given: slow(*given[:4]))
        replaced(opened, response, "run_prefix", lambda *_: None)
        yield


def replaced(opened: ExitStack, module: Any, name: str, value: Any) -> None:
    """Another value for a module's name, until the stack is closed."""
    opened.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


def loading(load: Any, opened: ExitStack, below: int, *given: Any, **options: Any) -> Any:
    """A model as ``load`` gives it, that looks states up until the stack is closed."""
    import kept

    model = load(*given, **options)
    folder = STATES / f"{Path(given[1]).name}-{below}"
    states = kept.States(folder, model.config.hidden_size)
    opened.enter_context(kept.kept_below(model, below, states))
    return model


def warm(config: str, changes: Sequence[str], below: int, share: tuple[int, int]) -> int:
    """Run the lower layers on this process's share of the texts of a configuration."""
    import numpy as np
    import torch

    from hbo.config import load_config
    from hbo.measure.batches import collate, plan_batches
    from hbo.measure.examples import Encoded
    from hbo.run import train
    from hbo.run.prepare import prepare

    prepared = prepare(load_config(Path(config), changes))
    arrays = [np.array(text, np.int32) for text in sorted(set(texts_of(prepared)))]
    texts = [Encoded(ids, ids) for ids in arrays]
    batches = plan_batches([text.num_tokens for text in texts], TOKENS)
    with kept_states(below), torch.no_grad():
        model = train.load_model(prepared.loaded, prepared.model, prepared.settings)
        for indices in batches[share[0] :: share[1]]:
            batch = collate([texts[index] for index in indices], 0)
            mask = batch.attention_mask
            model.get_decoder()(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
    return 0


def texts_of(prepared: Any) -> Iterator[tuple[int, ...]]:
    """Tokens of everything that a run of a configuration reads."""
    from hbo.evaluation.examples import choose_grading, find_options
    from hbo.run.heldout import all_examples

    most = prepared.loaded.config.evaluation.max_examples
    for part in prepared.parts:
        for encoded in part.encoded.encoded:
            yield tuple(encoded.input_ids.tolist())
        options = find_options(all_examples(part))
        for example in (*part.validation[:most], *part.test[:most]):
            yield tuple(example.encoded.input_ids.tolist())
            if choose_grading([example], options) == "options" and options is not None:
                for answer in options.values():
                    yield (*example.prompt_ids, *answer)


def main() -> None:
    """``hbo compare``, sooner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--policies")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--against")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--below", type=int, help="the lowest layer that is trained")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--overwrite", action="store_true")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(READY))
    from hbo.cli import compare
    from hbo.run import compare as runs
    from hbo.run.fleet import slots

    if chosen.below is not None:
        STATES.mkdir(parents=True, exist_ok=True)
        shares = [
            start(
                context,
                partial(warm, chosen.config, chosen.set, chosen.below, (number, chosen.jobs)),
                STATES / "warm.log",
                place,
            )
            for number, place in enumerate(slots(chosen.jobs))
        ]
        statuses = [each.join() for each in shares]  # all of them, before any run starts
        if any(statuses):
            raise SystemExit(f"see {STATES / 'warm.log'}")
    started = partial(launch, context, chosen.below)
    runs.run_comparison = partial(runs.run_comparison, launch=started)
    compare.compare(
        Path(chosen.config),
        chosen.set,
        policies=chosen.policies,
        seeds=chosen.seeds,
        against=chosen.against,
        jobs=chosen.jobs,
        plan=False,
        like=None,
        overwrite=chosen.overwrite,
        keep_models=False,
        as_json=False,
    )


if __name__ == "__main__":
    main()
