"""The one stream of draws: random numbers by counter, shuffles by key, laws, limits, replay."""

from hbo.sampling.digest import StreamDigest, stream_sha256
from hbo.sampling.limits import Limits
from hbo.sampling.permutation import permute
from hbo.sampling.random import uniforms
from hbo.sampling.state import Breakpoint
from hbo.sampling.stream import Stream

__all__ = [
    "Breakpoint",
    "Limits",
    "Stream",
    "StreamDigest",
    "permute",
    "stream_sha256",
    "uniforms",
]
