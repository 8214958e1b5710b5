"""The hash of what was drawn: in any cuts, from the recorded history alone."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbo.errors import StateError
from hbo.sampling.digest import StreamDigest, stream_sha256
from hbo.sampling.stream import Stream


def made() -> Stream:
    stream = Stream([[30, 20], [5, 7]], 3)
    stream.push(0, [[0.5, 0.3], [0.1, 0.1]])
    stream.push(50, [[0.1, 0.1], [0.5, 0.3]])
    return stream


@given(st.lists(st.integers(0, 30), max_size=6))
def test_cuts_do_not_change_the_digest(cuts: list[int]) -> None:
    stream, digest = made(), StreamDigest()
    parts = [stream.take(cut) for cut in cuts]
    for part in parts:
        digest.update(part)
    plain = b"".join(int(i).to_bytes(8, "little") for part in parts for i in part)
    assert digest.draws == sum(cuts)
    assert digest.hexdigest() == hashlib.sha256(plain).hexdigest()
    assert digest.hexdigest() == stream_sha256(stream, sum(cuts))


def test_a_replayed_digest_goes_on() -> None:
    stream = made()
    ids = stream.take(120)
    digest = StreamDigest.replay(stream, 70)
    digest.update(ids[70:])
    assert digest.hexdigest() == stream_sha256(stream, 120)
    assert stream.position == 120


def test_order_and_ids_count() -> None:
    digests = set()
    for ids in ([1, 2], [2, 1], [1], [1, 2, 0], []):
        digest = StreamDigest()
        digest.update(np.array(ids, dtype=np.int64))
        digests.add(digest.hexdigest())
    assert len(digests) == 5


def test_nothing_to_replay_is_said() -> None:
    with pytest.raises(StateError, match="no probabilities"):
        stream_sha256(Stream([[1]], 0), 1)
