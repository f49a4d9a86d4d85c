"""Signals as calls on the event loop."""

import select
import signal

from crumble.cli.signals import Signals
from crumble_common.eventloop import EventLoop


def test_a_signal_wakes_the_loop_before_its_handler_has_run() -> None:
    """One that comes just before the loop sleeps is else seen when something else happens."""
    loop, seen = EventLoop(), list[int]()
    with Signals(loop, seen.append) as signals:
        signal.raise_signal(signal.SIGWINCH)
        poll = select.poll()  # select() takes no number above 1,023
        poll.register(signals._reader, select.POLLIN)
        assert poll.poll(0)
        while not seen:
            loop.step(10)
        loop.step(0)
        assert not poll.poll(0)
    assert seen == [signal.SIGWINCH]
    assert signal.set_wakeup_fd(-1) == -1
    loop.close()
