"""The VM log (bounded, followed) and the fd store (owns what it is given)."""

import os
from pathlib import Path

import pytest

from crumble.supervisor import vmlog
from crumble.supervisor.fdstore import FdStore
from crumble.supervisor.vmlog import VmLog
from crumble_common.messages.client import LogData


def test_a_log_keeps_the_newest_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vmlog, "_LIMIT", 100)
    log = VmLog(tmp_path / "a.log", "a")
    for number in range(100):
        log.append(b"line %02d\n" % number)
    data = log.read()
    assert data.endswith(b"line 98\nline 99\n")
    assert 100 <= len(data) <= 200
    assert log.read(tail=2) == b"line 98\nline 99\n"
    log.remove()
    assert list(tmp_path.iterdir()) == []


def test_followers_get_what_is_new_and_the_end(tmp_path: Path) -> None:
    log = VmLog(tmp_path / "a.log", "a")
    log.append(b"old")
    got: list[LogData] = []
    log.follow(got.append)
    log.append(b"new")
    log.end()
    log.append(b"late")
    log.end()
    assert got == [LogData("a", b"new"), LogData("a", b"", eof=True)]
    assert log.read() == b"oldnew"


def test_the_fd_store_closes_what_it_was_given() -> None:
    store = FdStore()
    first, second, other = (os.open("/dev/null", os.O_RDONLY) for _ in range(3))
    store.put("vm1", "memory", first)
    store.put("vm1", "memory", second)
    store.put("vm2", "memory", other)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first)
    assert store.get("vm1", "memory") == second
    store.close("vm1")
    assert len(store) == 1
    store.close_all()
    assert len(store) == 0
    with pytest.raises(KeyError):
        store.get("vm2", "memory")
    for fd in (second, other):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)
