"""Coroutines over the one event loop, for recipes that wait: start this, ask that, then go on.

A small part of what asyncio does, without its import time and its second event loop. Everything
runs in the loop's thread; a callback of a future runs at once when the future is resolved, so what
arrives on one socket is acted on in the order in which it arrived.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from crumble_common.errors import CrumbleError
from crumble_common.eventloop import EventLoop

T = TypeVar("T")


class Cancelled(BaseException):
    """Thrown into a coroutine whose task was cancelled, where it waits."""


class Future(Generic[T]):
    """A result to come: a value or an error, once; what is set later is ignored."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future[T]], None]] = []

    def set(self, value: T) -> None:
        """Resolves it with a value."""
        if not self.done:
            self._value = value
            self._resolve()

    def fail(self, error: BaseException) -> None:
        """Resolves it with an error."""
        if not self.done:
            self._error = error
            self._resolve()

    @property
    def failed(self) -> bool:
        """Resolved, with an error."""
        return self._error is not None

    def result(self) -> T:
        """The value; raises the error."""
        assert self.done
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # set, if to None

    def then(self, callback: Callable[[Future[T]], None]) -> None:
        """Calls back when resolved: now, if it is."""
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()

    def _resolve(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class Task(Future[T]):
    """A coroutine being run; it is itself the future of what the coroutine returns."""

    __slots__ = ("_cancelled", "_coroutine", "_waiting")

    def __init__(self, coroutine: Coroutine[Any, None, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._waiting: Future[Any] | None = None
        self._cancelled = False
        self._step(None)

    def cancel(self) -> None:
        """Throws Cancelled into the coroutine, where it waits; its cleanup runs, and may wait."""
        if self._waiting is not None:
            self._step(Cancelled())
        else:
            self._cancelled = True  # it is running: thrown when it next waits

    def _step(self, error: BaseException | None) -> None:
        self._waiting = None
        coroutine = self._coroutine
        try:
            waited: Future[Any] = coroutine.throw(error) if error else coroutine.send(None)
        except StopIteration as stop:
            self.set(stop.value)
        except BaseException as problem:  # noqa: BLE001  it is the task's result
            self.fail(problem)
        else:
            self._wait_for(waited)

    def _wait_for(self, waited: Future[Any]) -> None:
        if self._cancelled:
            self._cancelled = False
            self._step(Cancelled())
            return
        self._waiting = waited
        waited.then(self._resume)

    def _resume(self, future: Future[Any]) -> None:
        if self._waiting is future:
            self._step(None)


async def both(first: Task[Any], second: Task[Any]) -> tuple[Any, Any]:
    """Waits for two tasks that go on at once; the first error to be met is raised, and cancels them."""
    try:
        return await first, await second
    except BaseException:
        first.cancel()
        second.cancel()
        raise


def sleep(loop: EventLoop, seconds: float) -> Future[None]:
    """Resolved after a time."""
    future: Future[None] = Future()
    loop.call_later(seconds, lambda: future.set(None))
    return future


def limited(
    loop: EventLoop, future: Future[T], seconds: float, error: Callable[[], CrumbleError]
) -> Future[T]:
    """`future`, or `error()` when it is not resolved within `seconds`."""
    outcome: Future[T] = Future()
    timer = loop.call_later(seconds, lambda: outcome.fail(error()))

    def settle(done: Future[T]) -> None:
        timer.cancel()
        _copy(done, outcome)

    future.then(settle)
    return outcome


def in_thread(loop: EventLoop, call: Callable[[], T]) -> Future[T]:
    """What `call` gives, which may take its time: a thread runs it. The loop must outlive it."""
    outcome: Future[T] = Future()

    def run() -> None:
        done: Future[T] = Future()
        try:
            done.set(call())
        except BaseException as error:  # noqa: BLE001  passed on
            done.fail(error)
        loop.call_soon_threadsafe(lambda: _copy(done, outcome))

    threading.Thread(target=run, name="worker").start()
    return outcome


def _copy(source: Future[T], target: Future[T]) -> None:
    try:
        target.set(source.result())
    except BaseException as error:  # noqa: BLE001  passed on
        target.fail(error)
