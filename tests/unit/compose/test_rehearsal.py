"""What runs in a guest before its boot is captured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crumble.supervisor.rehearsal import rehearse
from crumble.supervisor.tasks import Task
from crumble_common.errors import GuestError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.vm import ProcessExit, ProcessOutput, ProcessStart


class Guest:
    """As much of a VM as a rehearsal sees; its time is ours."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loop = EventLoop(clock=lambda: self.now)
        self.host = self
        self.shell = True
        self.started: list[list[str]] = []
        self.listener: Any = None
        self.forgotten: list[Any] = []

    async def start_process(self, start: ProcessStart, listener: Any) -> None:
        if not self.shell:
            raise GuestError("There is no /bin/sh.", code="exec.not_found")
        self.started.append(start.argv)
        self.listener = listener

    def forget(self, listener: Any) -> None:
        self.forgotten.append(listener)


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.loop.close()


def test_it_lasts_until_the_shell_has_ended(guest: Guest) -> None:
    task = Task(rehearse(guest))  # type: ignore[arg-type]  # a fake
    guest.listener.deliver(ProcessOutput(1, 1, b"a profile's greeting"), "vm:a")
    assert guest.started == [["/bin/sh", "-c", ":"]]
    assert not task.done
    guest.listener.deliver(ProcessExit(1, 0, 0), "vm:a")
    assert task.done


def test_an_image_without_a_shell_is_none_the_worse(guest: Guest) -> None:
    guest.shell = False
    task = Task(rehearse(guest))  # type: ignore[arg-type]  # a fake
    assert task.done
    assert not task.failed


def test_a_shell_that_does_not_end_is_not_waited_for_and_not_left(guest: Guest) -> None:
    task = Task(rehearse(guest))  # type: ignore[arg-type]  # a fake
    guest.now = 60.0
    guest.loop.step(0)
    assert task.done
    assert not task.failed
    assert guest.forgotten == [guest.listener]
