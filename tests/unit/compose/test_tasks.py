"""Coroutines over the event loop: order, errors, cancelling."""

import pytest

from crumble.supervisor.tasks import Cancelled, Future, Task, both, limited, sleep
from crumble_common.errors import HostError
from crumble_common.eventloop import EventLoop


async def wait_for(future: Future[int], seen: list[object]) -> int:
    try:
        value = await future
    except BaseException as error:
        seen.append(type(error))
        raise
    seen.append(value)
    return value + 1


def test_a_task_goes_on_at_once_when_what_it_waits_for_is_there() -> None:
    future: Future[int] = Future()
    seen: list[object] = []
    task = Task(wait_for(future, seen))
    assert not task.done
    future.set(4)
    assert (task.result(), seen) == (5, [4])


def test_the_first_result_stays() -> None:
    future: Future[int] = Future()
    future.set(1)
    future.fail(HostError("late"))
    future.set(2)
    assert future.result() == 1


def test_errors_reach_who_waits() -> None:
    future: Future[int] = Future()
    task = Task(wait_for(future, []))
    future.fail(HostError("no"))
    with pytest.raises(HostError, match="no"):
        task.result()


def test_cancelling_is_thrown_in_where_it_waits_and_cleanup_may_wait_again() -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    seen: list[object] = []

    async def work() -> None:
        try:
            await first
        finally:
            seen.append(await second)

    task = Task(work())
    task.cancel()
    first.set(1)  # nobody waits for it any more
    assert seen == []
    second.set(2)
    assert seen == [2]
    with pytest.raises(Cancelled):
        task.result()
    task.cancel()


def test_a_task_cancelled_while_it_runs_stops_where_it_next_waits() -> None:
    future: Future[int] = Future()
    tasks: list[Task[int]] = []
    start: Future[int] = Future()

    async def work() -> int:
        await start
        tasks[0].cancel()
        return await future

    tasks.append(Task(work()))
    start.set(0)
    with pytest.raises(Cancelled):
        tasks[0].result()


async def _value(future: Future[int]) -> int:
    return await future


def test_both_wait_for_both() -> None:
    first: Future[int] = Future()
    second: Future[int] = Future()
    task = Task(both(Task(_value(first)), Task(_value(second))))
    second.set(2)
    assert not task.done
    first.set(1)
    assert task.result() == (1, 2)


@pytest.mark.parametrize("cancelled", [True, False])
def test_both_cancel_what_goes_on(cancelled: bool) -> None:
    first: Future[int] = Future()
    other = Task(_value(Future()))
    task = Task(both(Task(_value(first)), other))
    if cancelled:
        task.cancel()
    else:
        first.fail(HostError("broken"))
    with pytest.raises(Cancelled if cancelled else HostError):
        task.result()
    with pytest.raises(Cancelled):
        other.result()


def test_limited_fails_when_its_time_is_over() -> None:
    now = [0.0]
    loop = EventLoop(lambda: now[0])
    late: Future[int] = Future()
    outcome = limited(loop, late, 5, lambda: HostError("late"))
    in_time = limited(loop, late, 50, lambda: HostError("late"))
    nap = sleep(loop, 5)
    now[0] = 6
    loop.step(0)
    assert nap.done
    with pytest.raises(HostError, match="late"):
        outcome.result()
    late.set(3)
    assert in_time.result() == 3
    loop.close()
