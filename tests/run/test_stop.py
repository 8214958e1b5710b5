"""Signals: at once outside training, after the step inside it."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from hbo.run import stop
from hbo.run.callbacks import StopCallback
from hbo.run.stop import Interrupted, StopRequest, listening, steady_workers


def test_outside_training_a_signal_raises_at_once():
    with listening(), pytest.raises(Interrupted, match="SIGTERM") as caught:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signal_number == 15


def test_in_training_the_first_is_noted_and_the_second_raises(monkeypatch):
    monkeypatch.setattr(stop, "ONE_WISH", 0.0)
    with listening() as request:
        request.patient = True
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        with pytest.raises(Interrupted, match="checkpoint at step 3"):
            request.raise_if_requested("checkpoint at step 3")
        with pytest.raises(Interrupted, match="SIGINT"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("patient", [True, False])
def test_a_scheduler_and_a_launcher_that_both_signal_are_one_wish(patient):
    with listening() as request:
        request.patient = patient
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted:
            assert not patient
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal_number == signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_nothing_requested_nothing_raised():
    StopRequest().raise_if_requested("x")


class ProcessIds(torch.utils.data.Dataset):
    """Each item is the process that loaded it."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return os.getpid()


def begin(worker_id):
    """What a trainer has its workers do first."""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="Linux only")
def test_a_loader_worker_outlives_a_signal_of_a_launcher_and_heeds_its_parent():
    def make():
        return DataLoader(ProcessIds(), num_workers=1, worker_init_fn=begin)

    trainer = SimpleNamespace(get_train_dataloader=make)
    steady_workers(trainer)
    batches = iter(trainer.get_train_dataloader())
    worker = int(next(batches))
    # From another process: one of our own would be its parent's word.
    for _ in range(2):
        assert os.spawnlp(os.P_WAIT, "kill", "kill", "-TERM", str(worker)) == 0
    assert [int(pid) for pid in batches] == [worker] * 39
    del batches
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_signal_that_comes_while_ranks_ask_each_other_is_not_lost(monkeypatch):
    request = StopRequest()

    def comes_now(flag, op):
        request.signal_number = signal.SIGTERM  # after ours was read: the flag says 0

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", comes_now)
    callback = StopCallback(request)
    assert not callback._requested(torch.device("cpu"))
    assert request.signal_number == signal.SIGTERM
