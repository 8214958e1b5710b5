"""Ranks as torchrun, accelerate launch and MPI number them."""

from __future__ import annotations

import pytest

from hbo.run import world

LAUNCHERS = {
    "torchrun": {"RANK": "3", "WORLD_SIZE": "8"},
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
    "Intel MPI": {"PMI_RANK": "3", "PMI_SIZE": "8"},
    "MVAPICH": {"MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_SIZE": "8"},
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*world.RANK, *world.WORLD_SIZE):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_the_main_one() -> None:
    assert (world.rank(), world.world_size(), world.is_main()) == (0, 1, True)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_is_understood_as_accelerate_does(
    launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import get_cpu_distributed_information

    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    theirs = get_cpu_distributed_information()
    assert (world.rank(), world.world_size()) == (theirs.rank, theirs.world_size) == (3, 8)
    assert not world.is_main()
