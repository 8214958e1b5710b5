"""Signals: at once outside training, after the step inside it."""

import os
import signal

import pytest

from hbo.run.stop import Interrupted, StopRequest, listening


def test_outside_training_a_signal_raises_at_once():
    with listening(), pytest.raises(Interrupted, match="SIGTERM") as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signal_number == 15


def test_in_training_the_first_is_noted_and_the_second_raises():
    with listening() as request:
        request.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        with pytest.raises(Interrupted, match="checkpoint at step 3"):
            request.raise_if_requested("checkpoint at step 3")
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_requested_nothing_raised():
    StopRequest().raise_if_requested("x")
