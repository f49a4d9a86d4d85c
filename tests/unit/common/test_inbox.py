"""Fds arrive under the name they were sent with, never block, and never leak."""

import os
from collections.abc import Iterator

import pytest

from crumble_common.errors import InternalError
from crumble_common.inbox import Inbox, Outbox


@pytest.fixture
def pair() -> Iterator[tuple[Outbox, Inbox]]:
    outbox = Outbox()
    inbox = Inbox(os.dup(outbox.theirs))
    outbox.handed_over()
    yield outbox, inbox
    inbox.close()
    outbox.close()


def memory(text: str) -> int:
    fd = os.memfd_create("inbox")
    os.pwrite(fd, text.encode(), 0)
    return fd


def test_each_fd_is_taken_by_its_name_once(pair: tuple[Outbox, Inbox]) -> None:
    outbox, inbox = pair
    for name in ("one", "two"):
        fd = memory(name)
        outbox.send(name, fd)
        os.close(fd)
    for name in ("two", "one"):
        fd = inbox.take(name)
        assert os.pread(fd, 9, 0) == name.encode()
        assert not os.get_inheritable(fd)
        os.close(fd)
        with pytest.raises(InternalError) as caught:
            inbox.take(name)
        assert caught.value.code == "service.fd"


def test_what_was_not_sent_is_not_waited_for(pair: tuple[Outbox, Inbox]) -> None:
    with pytest.raises(InternalError, match="was not handed over"):
        pair[1].take("nothing")


def test_what_nobody_takes_is_bounded_and_closed(pair: tuple[Outbox, Inbox]) -> None:
    outbox, inbox = pair
    reader, writer = os.pipe()
    outbox.send("kept", writer)
    os.close(writer)
    null = os.open(os.devnull, os.O_RDONLY)
    for number in range(20):
        outbox.send(f"other {number}", null)
    os.close(null)
    with pytest.raises(InternalError):
        inbox.take("nothing")
    assert os.read(reader, 1) == b"", "its last writer is closed"
    os.close(reader)


def test_a_service_that_takes_nothing_never_blocks_the_supervisor() -> None:
    outbox = Outbox()
    null = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(InternalError, match="takes no fd"):
        for _ in range(100_000):
            outbox.send("x", null)
    os.close(null)
    outbox.close()


def test_names_are_bounded() -> None:
    outbox = Outbox()
    for name in ("", "x" * 65):
        with pytest.raises(InternalError, match="cannot be an fd's name"):
            outbox.send(name, 0)
    outbox.close()
