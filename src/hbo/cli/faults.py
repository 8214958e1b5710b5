"""What an exception means for the exit status and for the one line on stderr."""

from __future__ import annotations

import pickle

from hbo.errors import HBOError
from hbo.run.files import disk_is_full
from hbo.run.stop import Interrupted as Interrupted

_HUB_MODULES = (
    "huggingface_hub",
    "requests",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "urllib3",
)
LONGEST = 2000
"""Letters of the one line; what it cites may be a value of any length."""
_HUB_WORDS = ("couldn't connect to", "offline mode", "connection error", "max retries exceeded")


def explain(error: BaseException) -> tuple[int, str]:
    """Exit status and text of an error; the text is one line.

    Example:
        >>> from hbo.errors import DataError
        >>> explain(DataError("no response", where="a.jsonl:3"))
        (2, 'a.jsonl:3: no response')
        >>> explain(MemoryError())[0]
        1
    """
    from hbo.config.secrets import hide

    status, text = _explain(error)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = hide(" ".join(text.split()))
    return status, text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, HBOError):
        return error.exit_status, str(error)
    from typer.exceptions import TyperException

    if isinstance(error, TyperException):
        return 2, f"{error.format_message().rstrip('.')}; see `hbo --help`"
    full = next((link for link in _chain(error) if disk_is_full(link)), None)
    if full is not None:
        return 1, f"{_place(full)}the disk is full; free some space and run again with --resume"
    if _out_of_memory(error):
        return 1, (
            "out of memory; lower training.per_device_train_batch_size or training.max_length"
            f" ({str(error)[:120]})"
        )
    if _hub(error):
        return 1, (
            "the model hub cannot be reached; check the network, or use a local path or one of"
            f" `hbo assets list` ({type(error).__name__}: {str(error)[:160]})"
        )
    if isinstance(error, pickle.UnpicklingError):
        return 2, (
            "a file of the checkpoint or of the model holds pickled objects, which are never loaded"
            " as they could run code; remove that folder, and go on from an earlier one"
        )
    if isinstance(error, OSError):
        return 1, f"{_place(error)}{error.strerror or str(error)[:200] or type(error).__name__}"
    if isinstance(error, ModuleNotFoundError):
        return 1, f"the package {error.name!r} is not installed; see `hbo doctor`"
    if str(error).startswith("DataLoader worker (pid"):
        return 1, f"a loader worker died ({str(error)[:160]}); run again with --resume"
    # An error of a loader worker brings its traceback as text, with its own words at the end.
    told = str(error).rpartition(f"\n{type(error).__name__}: ")[2]
    return 1, (
        f"a fault of hbo or of a library: {type(error).__name__}: {told[:300]}"
        " (run again with --debug for the traceback)"
    )


def _chain(error: BaseException) -> list[BaseException]:
    """An error and what caused it."""
    chain: list[BaseException] = []
    here: BaseException | None = error
    while here is not None and here not in chain:
        chain.append(here)
        here = here.__cause__ or here.__context__
    return chain


def _place(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f"{name}: " if name else ""


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def _hub(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    text = str(error).lower()
    return any(
        type(link).__module__.split(".")[0] in _HUB_MODULES for link in _chain(error)
    ) or any(word in text for word in _HUB_WORDS)
