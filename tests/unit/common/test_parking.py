"""Parked fds: what a service parked its successor gets, whatever became of the service."""

from __future__ import annotations

import gc
import os
import socket
from pathlib import Path

import msgpack
import pytest

from crumble_common.parking import Lot, Parking


def same(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def test_a_successor_gets_what_was_parked_and_not_dropped() -> None:
    lot = Lot(1000)
    parking = Parking(lot.open().detach())
    assert parking.recover() == {}
    fds = {f"flow:{number}": os.memfd_create("x") for number in range(300)}
    for name, fd in fds.items():
        parking.park(name, fd)
    parking.drop("flow:7")  # never told of
    parking.flush()
    parking.drop("flow:8")
    parking.flush()
    parking.close()  # as a death does; the keeper has not looked yet
    successor = Parking(lot.open().detach())
    found = successor.recover()
    assert found.keys() == fds.keys() - {"flow:7", "flow:8"}
    assert all(same(fd, fds[name]) for name, fd in found.items())
    successor.close()
    lot.close()
    for fd in (*found.values(), *fds.values()):
        os.close(fd)


def test_a_keeper_that_is_full_takes_no_more() -> None:
    lot = Lot(1)
    parking = Parking(lot.open().detach())
    parking.recover()
    fd = os.memfd_create("x")
    for name in ("a", "b"):
        parking.park(name, fd)
    parking.flush()
    assert lot.receive()
    assert list(lot.fds) == ["a"]
    parking.close()
    assert not lot.receive()
    lot.close()
    os.close(fd)


@pytest.mark.parametrize(
    "message",
    [b"\xc1", msgpack.packb(7), msgpack.packb({"put": [7], "drop": []}),
     msgpack.packb({"put": ["x" * 500], "drop": []}), msgpack.packb({"put": [], "drop": "all"})],
)  # fmt: skip
def test_what_is_no_message_changes_nothing(message: bytes) -> None:
    lot = Lot(10)
    theirs = lot.open()
    gc.collect()  # what tests before this one left in cycles
    before = len(list(Path("/proc/self/fd").iterdir()))
    socket.send_fds(theirs, [message], [0])
    assert lot.receive()
    assert (lot.fds, len(list(Path("/proc/self/fd").iterdir()))) == ({}, before)
    theirs.close()
    lot.close()
