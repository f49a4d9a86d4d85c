"""Progress of long work on stderr: bars on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from crumble.cli.text import clean, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from crumble_common.messages.image import Progress as ProgressEvent

_EVENT = "image.progress"


class Bars:
    """One bar for each step. Silent unless stderr is a terminal; `rich` is loaded when needed."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.shown = not quiet and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._steps: dict[str, TaskID] = {}

    def event(self, event: Any) -> None:
        """Shows a Progress event; others are not its business."""
        if not self.shown or getattr(event, "wire_type", "") != _EVENT:
            return
        if self._progress is None:
            self._progress = _start()
        total, said = event.total or None, amount(event)
        if event.step not in self._steps:
            self._steps[event.step] = self._progress.add_task(
                clean(event.step), total=total, amount=said
            )
        self._progress.update(
            self._steps[event.step], completed=event.done, total=total, amount=said
        )

    def frame(self, kind: str, body: dict[str, Any]) -> None:
        """The same, of an event as `quick.ask` has it."""
        if self.shown and kind == _EVENT:
            from crumble_common.messages.image import Progress as ProgressEvent

            self.event(ProgressEvent(**body))

    def tell(self, step: str, done: int, total: int) -> None:
        """The same, of work of our own in bytes."""
        done = min(done, total) if total else done
        self.frame(_EVENT, {"operation": "", "step": step, "done": done, "total": total})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bars; the terminal is as before."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._steps.clear()


def amount(event: ProgressEvent) -> str:
    """How far a step is, in its own unit."""
    if event.unit == "bytes":
        total = f" of {size(event.total)}" if event.total else ""
        return f"{size(event.done)}{total}"
    total = f" of {event.total}" if event.total else ""
    return f"{event.done}{total} {event.unit}"


def _start() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    progress.start()
    return progress
