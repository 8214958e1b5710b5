"""Configurations: read, override, check, explain."""

from hbo.config.load import LoadedConfig, from_mapping, load_config
from hbo.config.schema import Config

__all__ = ["Config", "LoadedConfig", "from_mapping", "load_config"]
