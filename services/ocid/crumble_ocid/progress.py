"""Progress of long operations: few events, whatever the pace of the work, and a way to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from crumble_common.errors import UsageError
from crumble_common.messages.image import Progress, Unit

_INTERVAL = 0.1  # seconds between two events of one step: as often as a person can see


class Step:
    """One step of an operation: `done` of `total` units (0: unknown). Safe for several threads."""

    def __init__(self, reporter: Reporter, name: str, total: int, unit: Unit) -> None:
        self.reporter = reporter
        self._name, self._total, self._unit = name, total, unit
        self._done = 0
        self._last = 0.0
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        """More was done; raises UsageError "cancelled" when the operation is to stop."""
        with self._lock:
            self._done += amount
            self._tell()

    def set(self, done: int) -> None:
        """So much is done altogether."""
        with self._lock:
            self._done = done
            self._tell()

    def peek(self, done: int) -> None:
        """Tells what somebody else has done of it, without counting it."""
        with self._lock:
            own, self._done = self._done, self._done + done
            self._tell()
            self._done = own

    def finish(self) -> None:
        """Everything is done; tells so at once."""
        with self._lock:
            self._total = self._total or self._done
            self._done = self._total
            self._last = 0.0
            self._tell()

    def _tell(self) -> None:
        self.reporter.check()
        now = time.monotonic()
        if now - self._last >= _INTERVAL:
            self._last = now
            self.reporter.emit(self._name, self._done, self._total, self._unit)


class Reporter:
    """Where an operation's progress goes, and whether it should go on."""

    def __init__(
        self,
        send: Callable[[Progress], None] | None = None,
        operation: str = "",
        stop: threading.Event | None = None,
    ) -> None:
        self._send = send
        self.operation = operation
        self._stop = stop or threading.Event()
        self._failed = threading.Event()

    def step(self, name: str, total: int = 0, unit: Unit = "bytes") -> Step:
        """Starts a step."""
        return Step(self, name, total, unit)

    def emit(self, name: str, done: int, total: int, unit: Unit) -> None:
        """Sends one event."""
        if self._send is not None:
            self._send(Progress(self.operation, name, done, total, unit))

    def cancel(self) -> None:
        """The operation is to stop. From any thread."""
        self._stop.set()

    def check(self) -> None:
        """Raises UsageError "cancelled" when the operation is to stop."""
        if self._stop.is_set() or self._failed.is_set():
            raise UsageError("The operation was cancelled.", code="cancelled")

    def wait(self, seconds: float) -> None:
        """Sleeps, but not through a cancellation."""
        self._stop.wait(seconds)
        self.check()

    def in_parallel(self, calls: Iterable[Callable[[], object]], workers: int) -> None:
        """Runs the calls, a few at a time; when one fails the others stop, and its error is raised."""
        from concurrent.futures import ThreadPoolExecutor  # 15 ms; a cached image needs none

        with ThreadPoolExecutor(workers, "ocid") as pool:
            futures = [pool.submit(self._guarded, call) for call in calls]
        failed = [error for future in futures if (error := future.exception())]
        for error in sorted(failed, key=_is_cancellation):
            raise error

    def _guarded(self, call: Callable[[], object]) -> None:
        self.check()
        try:
            call()
        except BaseException:
            self._failed.set()
            raise


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, UsageError) and error.code == "cancelled"


# For what runs nothing in parallel: a failure there would stop all who share a reporter.
QUIET = Reporter()
