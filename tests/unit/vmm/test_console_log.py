"""The kernel console: batches, what is kept, and what it tells of the end."""

from collections.abc import Callable

from crumble_vmm.console_log import KEPT, ConsoleLog

PANIC = (
    b"[    1.5] Run /init as init process\r\n"
    b"[    1.55] [   T1] init[1]: \x1b[1mtrap\r\n"
    b"[    1.570226] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000004\r\n"
    b"[    1.570556] CPU: 0 UID: 0 PID: 1 Comm: init\r\n"
    b"[    1.570912] Call Trace:\r\n[    1.570950] [<ffffffff80006f7c>] dump_backtrace\r\n"
)


class Loop:
    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.calls.append(callback)


def test_bytes_are_handed_on_in_batches() -> None:
    loop, got = Loop(), []
    log = ConsoleLog(loop, got.append)
    for byte in b"hello":
        log.write(bytes((byte,)))
    assert len(loop.calls) == 1
    loop.calls.pop()()
    log.write(b"!")
    assert len(loop.calls) == 1
    log.flush()
    loop.calls.pop()()
    assert got == [b"hello", b"!"]


def test_only_the_last_bytes_are_kept() -> None:
    log = ConsoleLog(Loop(), lambda _data: None)
    for _ in range(100):
        log.write(b"x" * 10_000)
    log.write(b"end")
    assert len(log.tail()) == KEPT
    assert log.tail().endswith(b"xend")


def test_a_panic_is_found_and_told() -> None:
    log = ConsoleLog(Loop(), lambda _data: None)
    assert log.panic() == ""
    log.write(PANIC)
    assert log.panic() == "Attempted to kill init! exitcode=0x00000004"
    assert log.last_lines(2) == "Run /init as init process\ninit[1]: ?[1mtrap"


def test_the_rest_of_a_marked_line() -> None:
    log = ConsoleLog(Loop(), lambda _data: None)
    assert log.after("init failed: ") == ""
    log.write(b"x\ninit failed: no root\r\nlater\n")
    assert log.after("init failed: ") == "no root"
