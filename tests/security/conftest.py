"""The command line in this process, in a folder like a user's: the fixtures of ``tests/cli``."""

from tests.cli.conftest import hbo, prepared, workspace

__all__ = ["hbo", "prepared", "workspace"]
