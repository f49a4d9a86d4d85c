"""Whatever a client sends, each request gets one reply and the supervisor goes on serving."""

import dataclasses
import time
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble.sdk.client import Client
from crumble.sdk.embedded import Embedded
from crumble.sdk.wires import ZmqWire
from crumble.supervisor import table
from crumble_common import wire
from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop
from crumble_common.messages import client as messages
from crumble_common.messages import image, vm
from crumble_common.messages.service import Failed, Heartbeat, Ok, Ping, Ready, Stop
from framework import fake_services
from framework.command import KEPT

KINDS = [
    Ping, Failed, Ready, Heartbeat, Stop, messages.VmCreate, messages.VmList, messages.VmStop,
    messages.VmLogs, messages.Status, messages.Lease, vm.ProcessStart, vm.ProcessInput,
    vm.ProcessCredit, vm.ProcessSignal, vm.ProcessResize, vm.FileRead, vm.FileWrite, vm.Timeline,
    vm.Shutdown, vm.VmEvent, vm.ProcessExit, image.ImageGet, image.ImageList, image.ImageInspect,
    image.ImageRemove, image.KernelGet, image.Progress,
]  # fmt: skip
# Names that mean something to the fakes, beside any others. Nothing here runs a host program but
# what ProcessStart names, so argv is chosen from harmless ones.
TEXTS = st.sampled_from(["", "a", "box", "fake", "unknown", "vm:a", "0", "fake=panic"]) | st.text(
    max_size=12
)
INTEGERS = st.sampled_from([-1, 0, 1, 2, 100 << 20, 1 << 40, 2**63]) | st.integers(-(2**70), 2**70)


def values(hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(option) for option in args))
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is list:
        return st.lists(values(args[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(values(args[0]), values(args[1]), max_size=2)
    if dataclasses.is_dataclass(hint):
        return bodies(hint)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXTS,
        int: INTEGERS,
        float: st.floats(-10, 10),
        bool: st.booleans(),
        bytes: st.binary(max_size=20),
        type(None): st.none(),
    }
    return plain[hint]


def bodies(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    fields = {name: values(hint) for name, hint in hints.items() if name in names(kind)}
    if kind is vm.ProcessStart:
        fields["argv"] = st.sampled_from([["true"], ["/nope"], [], ["cat"]])
    if kind is messages.VmStop:
        fields["grace"] = st.just(0.0)
    return st.builds(kind, **fields)


def names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


FRAMES = st.tuples(
    st.sampled_from(KINDS).flatmap(bodies), st.sampled_from(["", "images", "vm:box", "vm:", "x"])
)


class Fuzzed:
    """An embedded supervisor over the fakes with one VM, and a client."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.context: zmq.Context[Any] = zmq.Context()
        self.embedded = Embedded(self.context)
        self.embedded.start()
        self.client = Client(self.loop, ZmqWire(self.context, self.embedded.address))
        self.client.call(messages.VmCreate("fake", name="box"))

    def close(self) -> None:
        self.embedded.stop()
        self.client.close()
        self.loop.close()
        self.context.destroy(0)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    where = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRUMBLE_RUNTIME_DIR", str(where / "run"))
        patch.setenv("CRUMBLE_DATA_DIR", str(where / "data"))
        for name, row in fake_services.TABLE.items():
            patch.setitem(table.TABLE, name, row)
        made = Fuzzed()
        yield made
        made.close()
    assert not [path for path in Path(where / "run").iterdir() if path.name not in KEPT]


SETTINGS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SETTINGS
@given(st.lists(FRAMES, max_size=6))
def test_every_request_is_answered_once(fuzzed: Fuzzed, frames: list[tuple[Any, str]]) -> None:
    answers: dict[int, int] = Counter()
    sent = [(body, to) for body, to in frames if sendable(body)]
    for number, (body, to) in enumerate(sent):
        fuzzed.client.send(body, to)
        fuzzed.client.request(body, lambda _b, _e, n=number: answers.update([n]), to=to)
    assert fuzzed.client.call(Ping(), deadline=60) == Ok()
    deadline = time.monotonic() + 10
    while len(answers) < len(sent):
        fuzzed.loop.step(1)
        missing = [item for number, item in enumerate(sent) if number not in answers]
        assert time.monotonic() < deadline, missing
    assert set(answers.values()) <= {1}


def sendable(body: Any) -> bool:
    try:
        wire.decode(wire.encode(wire.Envelope(body)))
    except (wire.WireError, UsageError):
        return False
    return True


@SETTINGS
@given(st.lists(st.binary(max_size=80), max_size=6))
def test_bytes_that_are_no_messages_change_nothing(fuzzed: Fuzzed, frames: list[bytes]) -> None:
    for frame in frames:
        fuzzed.client._wire.send(frame)
    assert fuzzed.client.call(Ping(), deadline=60) == Ok()
