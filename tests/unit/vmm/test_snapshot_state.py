"""The state of a VM as bytes: taken, set, and refused when it cannot be."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.messages.vm import Pause, Resume, Timeline, VmConfig
from crumble_common.wire import pack_body
from crumble_vmm.devices.virtio import transport
from crumble_vmm.devices.virtio.device import RING_FEATURES
from crumble_vmm.snapshot.state import AgentState, ProcessState, VmState
from framework.snapshots import SnapshotVm, freeze, thaw
from framework.tiny_kernel import TinyKernel

MIB = 1 << 20
SIZE = 64 * MIB
RAM = 0x8000_0000
ENTRY = RAM + 2 * MIB


@pytest.fixture(scope="module")
def memory() -> Iterator[int]:
    fd = os.memfd_create("base")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


@pytest.fixture(scope="module")
def booted(memory: int, tmp_path_factory: pytest.TempPathFactory) -> VmState:
    """Of a guest that only spins."""
    path = tmp_path_factory.mktemp("kernel") / "kernel"
    kernel = TinyKernel()
    kernel.spin()
    path.write_bytes(kernel.image())
    with SnapshotVm(VmConfig(vm="vm1", kernel=str(path), memory=SIZE)) as vm:
        while True:
            state = VmState.decode(freeze(vm, memory))
            assert thaw(vm).error == ""
            if state.cpus[0]["pc"] != ENTRY:
                return state


@pytest.fixture(scope="module")
def live(booted: VmState) -> dict[str, Any]:
    """The same, as if its drivers had set all devices up and its agent were in conversation."""
    found: dict[str, Any] = pack_body(booted)
    for slot, name in enumerate(("console", "rng")):
        device = found["devices"][name]
        device["status"] = (
            transport.ACKNOWLEDGE | transport.DRIVER | transport.FEATURES_OK | transport.DRIVER_OK
        )
        device["features"] = RING_FEATURES
        device["interrupt"] = 1
        for index, queue in enumerate(device["queues"]):
            at = RAM + 32 * MIB + slot * MIB + index * 0x4000
            queue |= {
                "size": 8,
                "ready": True,
                "descriptors": at,
                "driver": at + 0x1000,
                "device": at + 0x2000,
            }
    found["devices"]["console"]["device"]["control"] = [b"12345678"]
    found["devices"]["console"]["device"]["ports"][1] = {"open": True, "waiting": b"waiting"}
    found["devices"]["serial"]["input"] = b"typed"
    found["devices"]["rtc"] |= {"armed": True, "alarm": 1}
    agent = AgentState(True, 9, [ProcessState(3, 33, [1, 2])], [4], b"\1\2", b"rest")
    found["agent"] = pack_body(agent)
    return found


def vm_of(state: bytes, memory: int, **fields: Any) -> SnapshotVm:
    config = VmConfig(vm="vm2", kernel="", memory=SIZE, restore=state)
    return SnapshotVm(replace(config, **fields), {"memory_base": os.dup(memory)})


def blob(found: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(found)
    return packed


def test_a_restored_vm_has_the_state_it_was_given(live: dict[str, Any], memory: int) -> None:
    with vm_of(blob(live), memory) as vm:
        vm.ask(Pause())
        again = VmState.decode(freeze(vm, os.memfd_create("again")))
        thaw(vm)
    was = VmState.decode(blob(live))
    assert again.cpus[0]["pc"] == was.cpus[0]["pc"]
    assert again.time >= was.time
    assert again.devices["serial"] == was.devices["serial"]
    assert again.devices["console"]["queues"] == was.devices["console"]["queues"]
    assert again.devices["console"]["device"]["control"] == [b"12345678"]
    waiting = again.devices["console"]["device"]["ports"][1]["waiting"]
    assert waiting.startswith(b"waitingrest")  # then what tells the agent of its new life
    assert again.agent.last_channel == 9
    assert [process.channel for process in again.agent.processes] == [3]
    assert again.agent.others == [4]
    assert again.agent.received == b"\1\2"


def test_the_clock_stands_while_paused(live: dict[str, Any], memory: int) -> None:
    with vm_of(blob(live), memory) as vm:
        vm.ask(Pause())
        first = VmState.decode(freeze(vm, os.memfd_create("first"))).time
        thaw(vm)
        second = VmState.decode(freeze(vm, os.memfd_create("second"))).time
        thaw(vm)
        assert first == second
        vm.ask(Resume())
        third = VmState.decode(freeze(vm, os.memfd_create("third"))).time
        thaw(vm)
        assert first < third < first + 20_000_000


def change(found: dict[str, Any], path: tuple[str | int, ...], value: Any) -> Any:
    """A copy with one value replaced."""
    if not path:
        return value
    copy: Any = found.copy()
    copy[path[0]] = change(copy[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("format",), 1, "snapshot.foreign"),
        (("format",), None, "snapshot.foreign"),
        (("architecture",), "arm64", "snapshot.foreign"),
        (("hypervisor",), "kvm", "snapshot.foreign"),
        (("memory",), 128 * MIB, "snapshot.foreign"),
        (("cpus",), [], "snapshot.foreign"),
        (("devices",), {}, "snapshot.foreign"),
        (("time",), -1, "snapshot.corrupt"),
        (("time",), 1 << 63, "snapshot.corrupt"),
        (("controller",), b"", "snapshot.corrupt"),
        (("controller",), b"\xff" * 4096, "snapshot.corrupt"),
        (("cpus", 0, "pc"), 1, "snapshot.corrupt"),
        (("cpus", 0, "x"), [1] * 32, "snapshot.corrupt"),
        (("cpus", 0, "x"), [0] * 33, "snapshot.corrupt"),
        (("cpus", 0, "privilege"), 3, "snapshot.corrupt"),
        (("cpus", 0), {}, "snapshot.corrupt"),
        (("devices", "serial", "divisor"), 1 << 16, "snapshot.corrupt"),
        (("devices", "rtc", "offset"), -1, "snapshot.corrupt"),
        (("devices", "rng", "queues"), [], "snapshot.corrupt"),
        (("devices", "rng", "features"), 1 << 40 | RING_FEATURES, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "size"), 16, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "size"), 7, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "size"), 0, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "descriptors"), RAM + SIZE, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "driver"), (1 << 64) - 2, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "device"), -4096, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "ring", "next"), 1 << 16, "snapshot.corrupt"),
        (("devices", "rng", "queues", 0, "ring", "unfinished"), [8], "snapshot.corrupt"),
        (("devices", "rng", "device"), {"x": 1}, "snapshot.corrupt"),
        (("devices", "console", "device", "ports"), [], "snapshot.corrupt"),
        (("devices", "console", "device", "control"), [b""] * 300, "snapshot.corrupt"),
        (("agent", "others"), [3], "snapshot.corrupt"),
        (("agent", "others"), [0], "snapshot.corrupt"),
        (("agent", "received"), b"x" * 80_000, "snapshot.corrupt"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_runs(
    live: dict[str, Any], memory: int, path: tuple[str | int, ...], value: object, code: str
) -> None:
    with pytest.raises(UsageError) as caught:
        begin(vm_of, blob(change(live, path, value)), memory)
    assert caught.value.code == code
    assert caught.value.hint


def begin(make: Callable[[bytes, int], SnapshotVm], state: bytes, memory: int) -> None:
    """Opens and starts the VM in this thread, and has it answer; CrumbleError when it is refused."""
    vm = make(state, memory)
    try:
        vm.service.start()
        vm.service.machine.pause()
    except CrumbleError:
        vm.service.stop(0)
        raise
    else:
        assert vm.service.timeline.slices()
        vm.service.stop(0)
    finally:
        vm.loop.close()
        vm.outbox.close()


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x80", b"[]", b"\x91" * 5000, bytes(2 << 20)])
def test_what_is_no_state_is_refused(memory: int, state: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        VmState.decode(state)
    assert caught.value.code in ("snapshot.corrupt", "snapshot.foreign")


def test_another_configuration_does_not_fit(live: dict[str, Any], memory: int) -> None:
    with pytest.raises(UsageError) as caught:
        vm_of(blob(live), memory, cpus=2)
    assert caught.value.code == "snapshot.foreign"


def paths(found: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of every value in there."""
    yield at
    items: Any = ()
    if isinstance(found, dict):
        items = found.items()
    elif isinstance(found, list):
        items = enumerate(found)
    for key, value in items:
        yield from paths(value, (*at, key))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 70000),
    st.integers(0, 64).map(lambda bit: (1 << bit) - 1),
    st.integers(0, 63).map(lambda bit: 1 << bit),
    st.integers(RAM - 64, RAM + SIZE),
    st.binary(max_size=50),
    st.text(max_size=5),
    st.lists(st.integers(0, 300), max_size=10),
    st.just({}),
    st.floats(),
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_or_gives_a_vm_that_can_be_stopped(
    live: dict[str, Any], memory: int, data: st.DataObject
) -> None:
    found = live
    everywhere = list(paths(found))[1:]
    for path in data.draw(st.lists(st.sampled_from(everywhere), min_size=1, max_size=3)):
        try:
            found = change(found, path, data.draw(VALUES))
        except (TypeError, KeyError, IndexError, AttributeError):
            continue  # what it was in is gone
    state = bytearray(blob(found))
    for _ in range(data.draw(st.integers(0, 2))):
        state[data.draw(st.integers(0, len(state) - 1))] = data.draw(st.integers(0, 255))
    try:
        begin(vm_of, bytes(state), memory)
    except CrumbleError as error:
        assert error.code in ("snapshot.corrupt", "snapshot.foreign"), error


def test_requests_while_it_stands_still_are_answered(live: dict[str, Any], memory: int) -> None:
    with vm_of(blob(live), memory) as vm:
        freeze(vm, os.memfd_create("x"))
        assert vm.ask(Timeline()).slices
        thaw(vm)
