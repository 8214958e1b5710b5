"""The hash that says whether two runs were trained on the same examples in the same order."""

from __future__ import annotations

import hashlib

import numpy as np

from hbo.mixture import IntArray
from hbo.sampling.stream import Stream


class StreamDigest:
    """SHA-256 of example ids as little-endian int64, in draw order, taken as they come.

    Example:
        >>> digest = StreamDigest()
        >>> digest.update(np.array([3, 1]))
        >>> digest.update(np.array([2]))
        >>> digest.draws, digest.hexdigest()[:8]
        (3, '7c4cec7a')
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.draws = 0

    def update(self, example_ids: IntArray) -> None:
        """Add the ids of the next draws."""
        self._sha.update(np.ascontiguousarray(example_ids, dtype="<i8").tobytes())
        self.draws += len(example_ids)

    def hexdigest(self) -> str:
        """64 hexadecimal digits for the ids so far."""
        return self._sha.hexdigest()

    @classmethod
    def replay(cls, stream: Stream, up_to: int) -> StreamDigest:
        """The digest after ``up_to`` draws, from the recorded history; ``stream`` is left alone.

        A running SHA-256 cannot be saved, and need not be: a resumed run replays its history.

        Raises:
            StateError: The history does not reach that far.
        """
        digest = cls()
        for example_ids in stream.replay(up_to):
            digest.update(example_ids)
        return digest


def stream_sha256(stream: Stream, up_to: int) -> str:
    """Hash of the first ``up_to`` draws of a stream (DESIGN 4, ``stream_sha256``)."""
    return StreamDigest.replay(stream, up_to).hexdigest()
