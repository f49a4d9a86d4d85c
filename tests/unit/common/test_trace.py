"""The trace log: readable while written, after a kill, and from damaged files."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common import trace
from crumble_common.errors import UsageError


def test_spans_nest_and_come_in_order_of_start() -> None:
    log = trace.Trace()
    with log.span("outer"):
        log.mark("point", 1, -1)
        with log.span("inner"):
            pass
    records = log.records()
    assert [(r.name, r.kind) for r in records] == [
        ("outer", trace.BEGIN), ("point", trace.MARK), ("inner", trace.BEGIN),
        ("inner", trace.END), ("outer", trace.END),
    ]  # fmt: skip
    assert (records[1].a, records[1].b) == (1, 2**64 - 1)
    assert [span.name for span in trace.spans(records)] == ["outer", "inner"]


def test_the_ring_keeps_the_newest() -> None:
    log = trace.Trace(capacity=4)
    for number in range(10):
        log.mark("n", number)
    assert [record.a for record in log.records()] == [6, 7, 8, 9]


def test_too_many_names_share_the_last_place() -> None:
    log = trace.Trace(capacity=400)
    for number in range(300):
        log.mark(f"name {number}")
    names = [record.name for record in log.records()]
    assert names[:255] == [f"name {number}" for number in range(255)]
    assert set(names[255:]) == {"(other)"}


def test_a_killed_writer_leaves_a_readable_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    child = os.fork()
    if child == 0:
        trace.Trace(path=str(path)).mark("last words", 7)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (record,) = trace.parse(path.read_bytes())
    assert (record.name, record.a) == ("last words", 7)


def test_the_inspector_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace"
    trace.Trace(path=str(path)).mark("hello", 3, 4)
    assert trace.main([str(path)]) == 0
    assert "mark   hello  3 4" in capsys.readouterr().out
    path.write_bytes(b"CRBTRACE")
    assert trace.main([str(path)]) == 1
    assert "too short" in capsys.readouterr().err


@given(st.binary(max_size=40), st.integers(0, 2**64 - 1))
def test_any_file_is_records_or_a_usage_error(head: bytes, count: int) -> None:
    """Invariant: parse() of any bytes returns records or raises UsageError, in bounded time."""
    whole = bytearray(trace._RECORDS_AT + 4 * trace._RECORD.size)
    whole[: trace._HEADER.size] = trace._HEADER.pack(b"CRBTRACE", 1, 1, 4, count)
    whole[8 : 8 + len(head)] = head
    try:
        assert len(trace.parse(bytes(whole))) <= 4
    except UsageError:
        pass
