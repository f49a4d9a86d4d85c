"""The one event loop of every process: typed fds, ZeroMQ sockets, timers, calls from other threads.

Level-triggered epoll(7) or `selectors` underneath. A ZeroMQ socket's fd is edge-triggered and any send may eat
the edge, so each round asks every ZeroMQ socket for its EVENTS before it sleeps. Everything waited
for has a kind ("control", "vhost-user", "kick"), and `counts` says how often each kind was served.

The clock can be a fake one: `EventLoop(clock=fake)` with `step(0)` never sleeps.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import select
import selectors
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

Callback = Callable[[], None]

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

# Messages taken from one ZeroMQ socket before the others get their turn.
_BURST = 64
# Values of the ZeroMQ API (zmq.h), so that a loop without ZeroMQ sockets need not import it.
_ZMQ_FD, _ZMQ_EVENTS, _ZMQ_POLLIN = 14, 15, 1


class ZmqSocket(Protocol):
    """What the loop needs of a ZeroMQ socket."""

    def getsockopt(self, option: int) -> int | bytes: ...


class Waiter(Protocol):
    """What waits in the loop's place, and serves some of what happens itself."""

    def wait(self, seconds: float | None) -> list[tuple[int, int]]:
        """At most so long, for what is the loop's: descriptors, and `selectors` masks of what they are ready for."""


class Timer:
    """A call to come; `cancel` may be used at any time."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """The call will not happen."""
        self.callback = None


class _Watch:
    """What is waited for on one fd."""

    __slots__ = ("kind", "on_readable", "on_writable", "registered")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.on_readable: Callback | None = None
        self.on_writable: Callback | None = None
        self.registered = 0  # the mask that the poller has

    def mask(self) -> int:
        readable = _READ if self.on_readable else 0
        return readable | (_WRITE if self.on_writable else 0)


class _Epoll:
    """epoll(7), where there is one: `selectors` costs more than the system calls."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._in, self._out = select.EPOLLIN, select.EPOLLOUT
        self._masks = (0, self._in, self._out, self._in | self._out)
        self.fd = self._epoll.fileno()
        self.close = self._epoll.close

    def register(self, fd: int, mask: int) -> None:
        self._epoll.register(fd, self._masks[mask])

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, self._masks[mask])

    def unregister(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # it was closed
            self._epoll.unregister(fd)

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """Descriptors and masks: both when one is hung up."""
        # Rounded up: a timer's moment has come then.
        wait = -1 if timeout is None else math.ceil(max(timeout, 0.0) * 1e3) * 1e-3
        return [(fd, self._mask(found)) for fd, found in self._epoll.poll(wait)]

    def _mask(self, found: int) -> int:
        return (_READ if found & ~self._out else 0) | (_WRITE if found & ~self._in else 0)


class _Selector:
    """Elsewhere."""

    def __init__(self) -> None:
        self.fd = -1
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close
        self.unregister = self._selector.unregister

    def register(self, fd: int, mask: int) -> None:
        self._selector.register(fd, mask)

    def modify(self, fd: int, mask: int) -> None:
        self._selector.modify(fd, mask)

    def wait(self, timeout: float | None) -> list[tuple[int, int]]:
        return [(key.fd, mask) for key, mask in self._selector.select(timeout)]


class _Wakeup:
    """An fd that another thread, or a signal handler, makes readable."""

    def __init__(self) -> None:
        # Who sets it must not find it closed, or another's, by then. A signal's handler may come in between.
        self._lock = threading.RLock()
        if hasattr(os, "eventfd"):
            self.reader = self.writer = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.reader, self.writer = os.pipe()
            os.set_blocking(self.reader, False)
            os.set_blocking(self.writer, False)

    def set(self) -> None:
        with self._lock:
            if self.writer < 0:
                return  # it comes late: nobody serves it any more
            try:
                os.write(self.writer, (1).to_bytes(8, "little"))
            except BlockingIOError:
                pass  # full: readable already

    def clear(self) -> None:
        try:
            os.read(self.reader, 8)
        except BlockingIOError:
            pass

    def close(self) -> None:
        with self._lock:
            fds, self.reader, self.writer = {self.reader, self.writer} - {-1}, -1, -1
            for fd in fds:
                os.close(fd)


class EventLoop:
    """Runs callbacks in the thread that calls `run`. Only `call_soon_threadsafe` and `stop` may be
    used from other threads. A callback's exception ends `run`, unless `on_error(kind, error)` is set.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self.on_error: Callable[[str, Exception], None] | None = None
        self.waiter: Waiter | None = None
        """Waits on `epoll`. Set before `run`."""
        self._clock = clock
        self._poller = _Epoll() if hasattr(select, "epoll") else _Selector()
        self._watches: dict[int, _Watch] = {}
        self._sockets: dict[ZmqSocket, tuple[str, Callback]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: deque[Callback] = deque()
        self._wakeup = _Wakeup()
        self._poller.register(self._wakeup.reader, _READ)
        self._stopped = False
        self._thread: int | None = None

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return self._clock()

    @property
    def fake(self) -> bool:
        """Its clock is not `time.monotonic`."""
        return self._clock is not time.monotonic

    @property
    def epoll(self) -> int:
        """The epoll(7) descriptor that has everything waited for; -1 where there is no epoll."""
        return self._poller.fd

    def in_loop_thread(self) -> bool:
        """True before `run` and inside it."""
        return self._thread in (None, threading.get_ident())

    def add_fd(self, fd: int, kind: str, on_readable: Callback) -> None:
        """Calls `on_readable` in every round in which `fd` is readable or hung up."""
        watch = self._watch(fd, kind)
        watch.on_readable = on_readable
        self._update(fd, watch)

    def set_writable(self, fd: int, kind: str, on_writable: Callback | None) -> None:
        """Calls `on_writable` in every round in which `fd` takes bytes; None ends that."""
        if on_writable is None and fd not in self._watches:
            return
        watch = self._watch(fd, kind)
        watch.on_writable = on_writable
        self._update(fd, watch)

    def set_readable(self, fd: int, kind: str, on_readable: Callback | None) -> None:
        """`add_fd`; None ends that, and leaves what `set_writable` asked for."""
        if on_readable is None and fd not in self._watches:
            return
        watch = self._watch(fd, kind)
        watch.on_readable = on_readable
        self._update(fd, watch)

    def remove_fd(self, fd: int) -> None:
        """Forgets `fd`; call it before closing the fd. Unknown fds are fine."""
        watch = self._watches.pop(fd, None)
        if watch is not None and watch.registered:
            self._poller.unregister(fd)

    def add_socket(self, socket: ZmqSocket, kind: str, on_readable: Callback) -> None:
        """Calls `on_readable` for each message waiting on a ZeroMQ socket; it must receive one."""
        self._sockets[socket] = (kind, on_readable)
        fd = socket.getsockopt(_ZMQ_FD)
        assert isinstance(fd, int)
        self._poller.register(fd, _READ)

    def remove_socket(self, socket: ZmqSocket) -> None:
        """Forgets a ZeroMQ socket; call it before closing the socket. Unknown ones are fine."""
        if self._sockets.pop(socket, None):
            fd = socket.getsockopt(_ZMQ_FD)
            assert isinstance(fd, int)
            self._poller.unregister(fd)

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Calls `callback` once, `seconds` from now."""
        timer = Timer(self._clock() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def call_soon(self, callback: Callback) -> None:
        """Calls `callback` in the next round."""
        self._soon.append(callback)

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """`call_soon` from another thread or from a signal handler."""
        self._soon.append(callback)
        self._wakeup.set()

    def run(self) -> None:
        """Serves until `stop`."""
        self._thread = threading.get_ident()
        try:
            while not self._stopped:
                self.step()
        finally:
            self._thread = None
            self._stopped = False

    def stop(self) -> None:
        """Makes `run` return after this round."""
        self._stopped = True
        self._wakeup.set()

    def step(self, timeout: float | None = None) -> None:
        """One round: waits at most `timeout` seconds (None: until something is due), serves."""
        served = self._serve_soon()
        served = self._serve_sockets() or served
        wait = 0.0 if served or self._stopped else self._wait_time(timeout)
        for fd, mask in self._wait(wait):
            if fd == self._wakeup.reader:
                self._wakeup.clear()
            elif watch := self._watches.get(fd):
                self._serve_fd(fd, watch, mask)
        self._serve_sockets()
        self._serve_timers()

    def close(self) -> None:
        """Frees the loop's own fds."""
        self._poller.close()
        self._wakeup.close()

    def _watch(self, fd: int, kind: str) -> _Watch:
        watch = self._watches.get(fd)
        if watch is None:
            watch = self._watches[fd] = _Watch(kind)
        return watch

    def _update(self, fd: int, watch: _Watch) -> None:
        mask = watch.mask()
        if not mask:
            self.remove_fd(fd)
        elif not watch.registered:
            self._poller.register(fd, mask)
        elif mask != watch.registered:
            self._poller.modify(fd, mask)
        watch.registered = mask

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        if self.waiter is not None:
            return self.waiter.wait(timeout)
        return self._poller.wait(timeout)

    def _wait_time(self, timeout: float | None) -> float | None:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if self._soon:
            return 0.0
        if not self._timers:
            return timeout
        due = max(0.0, self._timers[0][0] - self._clock())
        return due if timeout is None else min(due, timeout)

    def _call(self, kind: str, callback: Callback) -> None:
        self.counts[kind] += 1
        if self.on_error is None:
            callback()
            return
        try:
            callback()
        except Exception as error:  # noqa: BLE001  handed to the owner of the loop
            self.on_error(kind, error)

    def _serve_soon(self) -> bool:
        due = len(self._soon)
        for _ in range(due):
            self._call("call", self._soon.popleft())
        return due > 0

    def _serve_sockets(self) -> bool:
        served = False
        for socket, (kind, callback) in tuple(self._sockets.items()):
            for _ in range(_BURST):
                if socket not in self._sockets or not self._is_readable(socket):
                    break
                self._call(kind, callback)
                served = True
        return served

    @staticmethod
    def _is_readable(socket: ZmqSocket) -> bool:
        events = socket.getsockopt(_ZMQ_EVENTS)
        return isinstance(events, int) and bool(events & _ZMQ_POLLIN)

    def _serve_fd(self, fd: int, watch: _Watch, mask: int) -> None:
        if mask & _READ and watch.on_readable:
            self._call(watch.kind, watch.on_readable)
        if mask & _WRITE and self._watches.get(fd) is watch and watch.on_writable:
            self._call(watch.kind, watch.on_writable)

    def _serve_timers(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                self._call("timer", callback)
