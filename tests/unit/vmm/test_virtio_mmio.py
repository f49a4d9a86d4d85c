"""The virtio-mmio transport, by its registers, with the entropy device in it."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common.eventloop import EventLoop
from crumble_vmm.devices.virtio import mmio, transport
from crumble_vmm.devices.virtio.device import F_EVENT_IDX, F_VERSION_1
from crumble_vmm.devices.virtio.rng import MAX_FILL, Rng
from framework.virtio_mmio_driver import RAM, MmioDriver


@pytest.fixture
def driver() -> Iterator[MmioDriver]:
    loop = EventLoop()
    made = MmioDriver(Rng("rng", loop), loop)
    yield made
    made.close()


def test_identity(driver: MmioDriver) -> None:
    assert driver.read(mmio.DEVICE_ID) == 4
    assert driver.read(mmio.VENDOR_ID) == int.from_bytes(b"CRUM", "little")
    assert driver.read(mmio.QUEUE_SIZE_MAX) == 8
    driver.write(mmio.QUEUE_SEL, 1)
    assert driver.read(mmio.QUEUE_SIZE_MAX) == 0
    assert driver.read(mmio.SHM_LEN) == 0xFFFF_FFFF
    driver.write(mmio.DEVICE_FEATURES_SEL, 7)
    assert driver.read(mmio.DEVICE_FEATURES) == 0


def test_only_words_are_registers(driver: MmioDriver) -> None:
    for size in (1, 2, 8):
        assert driver.transport.mmio_read(mmio.MAGIC_VALUE, size) == 0
        driver.transport.mmio_write(mmio.STATUS, size, 1)
    assert driver.transport.mmio_read(2, 4) == 0
    assert driver.read(0xF0) == 0
    assert driver.status == 0


def test_entropy_flows(driver: MmioDriver) -> None:
    assert driver.negotiate()
    queue = driver.add_queue(0)
    driver.go()
    for _ in range(3):
        queue.submit([], [16, 48])
    driver.kick(0)
    done = queue.collect()
    assert [written for _, written, _ in done] == [64, 64, 64]
    assert len({data for _, _, data in done}) == 3
    assert driver.interrupt.bits == 1


def test_buffers_made_available_before_driver_ok_are_served(driver: MmioDriver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    queue.submit([], [8])
    driver.go()
    assert len(queue.collect()) == 1


def test_a_large_buffer_gets_a_bounded_answer(driver: MmioDriver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    driver.go()
    queue.submit([], [1 << 20])
    driver.kick(0)
    assert queue.collect()[0][1] == MAX_FILL


def test_features_must_be_offered_and_include_version_1(driver: MmioDriver) -> None:
    driver.write(mmio.STATUS, transport.ACKNOWLEDGE | transport.DRIVER)
    for wrong in (0, F_EVENT_IDX, F_VERSION_1 | 1, F_VERSION_1 | 1 << 40):
        driver.accept(wrong)
        driver.write(mmio.STATUS, driver.status | transport.FEATURES_OK)
        assert not driver.status & transport.FEATURES_OK
    driver.accept(F_VERSION_1)
    driver.write(mmio.STATUS, driver.status | transport.FEATURES_OK)
    assert driver.status & transport.FEATURES_OK
    driver.accept(1)
    driver.go()
    assert driver.status == 0xF


def test_driver_ok_without_features_breaks_the_device(driver: MmioDriver) -> None:
    driver.write(mmio.STATUS, transport.ACKNOWLEDGE | transport.DRIVER | transport.DRIVER_OK)
    assert driver.status & transport.NEEDS_RESET
    assert driver.interrupt.bits == 2
    driver.write(mmio.STATUS, 0)
    assert driver.status == 0
    assert driver.interrupt.bits == 0


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used"),
    [
        (0, RAM, RAM + 0x1000, RAM + 0x2000),
        (3, RAM, RAM + 0x1000, RAM + 0x2000),
        (8, RAM + 1, RAM + 0x1000, RAM + 0x2000),
        (8, 0, RAM + 0x1000, RAM + 0x2000),
        (8, RAM, RAM + 0x1000, 2**64 - 4),
        (8, RAM, 2**63, RAM),
    ],
)
def test_a_queue_outside_memory_breaks_the_device_only(
    driver: MmioDriver, size: int, desc: int, avail: int, used: int
) -> None:
    driver.negotiate()
    driver.program_queue(0, size, desc, avail, used)
    driver.go()
    assert driver.status & transport.NEEDS_RESET
    assert driver.transport.problem
    driver.kick(0)
    assert driver.negotiate()
    queue = driver.add_queue(0)
    driver.go()
    queue.submit([], [8])
    driver.kick(0)
    assert len(queue.collect()) == 1


def test_a_wild_ring_breaks_the_device_until_it_is_reset(driver: MmioDriver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    driver.go()
    queue.set_avail_idx(500)
    driver.kick(0)
    assert driver.status & transport.NEEDS_RESET
    assert driver.interrupt.bits & 2
    assert "ring" in driver.transport.problem or "avail" in driver.transport.problem
    driver.kick(0)
    driver.negotiate()
    fresh = driver.add_queue(0)
    driver.go()
    fresh.submit([], [8])
    driver.kick(0)
    assert len(fresh.collect()) == 1


def test_a_live_queue_cannot_be_moved(driver: MmioDriver) -> None:
    driver.negotiate()
    queue = driver.add_queue(0)
    driver.go()
    driver.write(mmio.QUEUE_READY, 0)
    driver.program_queue(0, 4, 0, 0, 0)
    assert driver.read(mmio.QUEUE_READY) == 1
    queue.submit([], [8])
    driver.kick(0)
    assert len(queue.collect()) == 1


def test_notifying_a_queue_that_is_not_there(driver: MmioDriver) -> None:
    driver.negotiate()
    driver.go()
    for index in (1, 99, 0xFFFF_FFFF):
        driver.kick(index)
    assert driver.status == 0xF


def test_config_change_is_told_to_a_live_driver(driver: MmioDriver) -> None:
    before = driver.read(mmio.CONFIG_GENERATION)
    driver.transport.config_changed()
    assert driver.interrupt.bits == 0
    driver.negotiate()
    driver.go()
    driver.transport.config_changed()
    assert driver.interrupt.bits == 2
    assert driver.read(mmio.CONFIG_GENERATION) == before + 2


ACCESS = st.tuples(
    st.booleans(),
    st.one_of(st.sampled_from(range(0, 0x120, 4)), st.integers(0, 0xFFF)),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 16), st.just(0x8000_0000)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ACCESS, max_size=60))
def test_any_accesses_leave_a_transport_that_a_reset_cures(
    accesses: list[tuple[bool, int, int, int]],
) -> None:
    """No sequence of register accesses raises, or keeps a driver from starting over."""
    loop = EventLoop()
    driver = MmioDriver(Rng("rng", loop), loop)
    try:
        for is_write, offset, size, value in accesses:
            if is_write:
                driver.transport.mmio_write(offset, size, value)
            else:
                assert 0 <= driver.transport.mmio_read(offset, size) < 1 << 8 * size
        driver.settle()
        assert driver.negotiate()
        queue = driver.add_queue(0)
        driver.go()
        queue.submit([], [8])
        driver.kick(0)
        assert len(queue.collect()) == 1
    finally:
        driver.close()
