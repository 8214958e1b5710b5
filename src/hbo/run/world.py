"""Which process of the run this is, as ``torchrun`` and ``accelerate launch`` say it."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among all; 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0
