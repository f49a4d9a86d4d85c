"""Of several failures, which one a person is told of; the clock is a fake one."""

from types import SimpleNamespace
from typing import Any

import pytest

from crumble.supervisor.causes import Causes
from crumble_common.errors import CrumbleError, HostError, InternalError
from crumble_common.eventloop import EventLoop
from crumble_common.messages.vm import VmEvent

BACK_END_LEFT = VmEvent(
    "a", "failed", "The back end of device fs root ended.", code="vmm.vhost_user"
)
FSD_SAYS = HostError("/x is neither a directory nor a regular file.", code="share.source")


def service(name: str) -> Any:
    return SimpleNamespace(name=f"{name}.a", row=SimpleNamespace(name=name))


def killed(name: str) -> InternalError:
    return InternalError(
        f"{name}.a was killed by signal 9 (SIGKILL).", code="service.died", signal=9
    )


class Judge:
    def __init__(self) -> None:
        self.now = 0.0
        self.loop = EventLoop(lambda: self.now)
        self.told: list[CrumbleError] = []
        self.causes = Causes(self.loop, "a", self.told.append)

    def wait(self, seconds: float) -> list[CrumbleError]:
        self.now += seconds
        self.loop.step(0)
        return self.told


@pytest.fixture
def judge() -> Any:
    made = Judge()
    yield made
    made.loop.close()


def test_the_back_ends_own_word_counts_however_late_it_comes(judge: Judge) -> None:
    judge.causes.guest_failed(service("vmm"), BACK_END_LEFT, False)
    assert judge.wait(0.3) == []
    assert judge.wait(1.5) == []
    judge.causes.service_ended(service("fsd"), FSD_SAYS)
    assert judge.told == [FSD_SAYS]
    assert judge.wait(10) == [FSD_SAYS]  # once


def test_a_back_end_that_says_nothing_is_not_waited_for_for_ever(judge: Judge) -> None:
    judge.causes.guest_failed(service("vmm"), BACK_END_LEFT, False)
    judge.wait(0.3)
    (told,) = judge.wait(3.1)
    assert told.message == "The VM a failed: The back end of device fs root ended."


def test_any_other_failure_of_the_guest_is_told_at_once(judge: Judge) -> None:
    judge.causes.guest_failed(service("vmm"), VmEvent("a", "panic", "It panicked."), False)
    (told,) = judge.wait(0.3)
    assert (told.code, told.hint != "") == ("guest.panic", True)


def test_a_killed_process_comes_before_who_misses_it(judge: Judge) -> None:
    judge.causes.guest_failed(service("vmm"), BACK_END_LEFT, False)
    judge.causes.service_ended(service("fsd"), killed("fsd"))
    (told,) = judge.wait(0.3)
    assert "fsd.a was killed by signal 9" in told.message
