"""Which process of the run this is, as ``torchrun`` and ``accelerate launch`` say it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def rank() -> int:
    """Number of this process among all; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Close the process group that the block opened, however it ends, or torch warns at exit."""
    try:
        yield
    finally:
        if "torch" in sys.modules:
            import torch.distributed as dist

            if dist.is_available() and dist.is_initialized():
                dist.destroy_process_group()
