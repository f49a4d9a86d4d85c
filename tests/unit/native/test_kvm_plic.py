"""The PLIC of KVM's riscv64 machines, on whatever /dev/kvm is here: what needs no guest."""

import os
import time
from collections.abc import Iterator

import pytest

from crumble_native import kvm

PLIC, STATUS, ACKNOWLEDGE, SOURCE = 0x0C00_0000, 0x1000_1060, 0x1000_1064, 3
# Of the state: two words, 96 priorities; then a bit a source.
PENDING = 4 * (2 + 96)


@pytest.fixture
def vm() -> Iterator[kvm.Vm]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("this host has no /dev/kvm that this user may use")
    made = kvm.Vm(kvm.IRQCHIP_NONE)
    made.create_plic(PLIC)
    yield made
    made.close()


@pytest.fixture
def slot(vm: kvm.Vm) -> int:
    made = vm.add_slot(STATUS, ACKNOWLEDGE)
    vm.bind_slot(made, SOURCE)
    return made


def pending(vm: kvm.Vm) -> int:
    return int.from_bytes(vm.get_plic()[PENDING : PENDING + 12], "little")


def test_lines_are_sources(vm: kvm.Vm) -> None:
    vm.set_line(40, True)
    assert pending(vm) == 1 << 40
    vm.set_line(40, False)
    assert pending(vm) == 0


def test_a_slots_status_is_its_sources_level(vm: kvm.Vm, slot: int) -> None:
    assert vm.slot_set(slot, 2) == 2
    assert pending(vm) == 1 << SOURCE
    assert vm.slot_clear(slot, 2) == 0
    assert pending(vm) == 0


def test_a_call_fd_sets_the_status(vm: kvm.Vm, slot: int) -> None:
    call = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        vm.irqfd(SOURCE, call)
        os.eventfd_write(call, 1)
        end = time.monotonic() + 20
        while not pending(vm) and time.monotonic() < end:
            os.sched_yield()
        assert (pending(vm), vm.slot_set(slot, 0)) == (1 << SOURCE, 1)
        vm.irqfd(SOURCE, call, on=False)
        os.eventfd_write(call, 1)
        with pytest.raises(OSError, match="No such file"):
            vm.irqfd(SOURCE, call, on=False)
        assert os.eventfd_read(call) == 1  # nobody else took it
    finally:
        os.close(call)


def test_its_state_goes_into_another(vm: kvm.Vm) -> None:
    vm.set_line(7, True)
    state = vm.get_plic()
    vm.set_line(7, False)
    vm.set_plic(state)
    assert pending(vm) == 1 << 7
    for wrong in (b"", bytes(len(state)), state[:-1]):
        with pytest.raises(OSError, match="Invalid argument"):
            vm.set_plic(wrong)


def test_there_is_one_and_slots_have_real_sources(vm: kvm.Vm) -> None:
    with pytest.raises(OSError, match="busy"):
        vm.create_plic(PLIC)
    with pytest.raises(OSError, match="Invalid argument"):
        vm.redrive_plic(0)  # there is no vCPU
    slot = vm.add_slot(STATUS + 0x1000, ACKNOWLEDGE + 0x1000)
    for source in (0, 96):
        with pytest.raises(OSError, match="Invalid argument"):
            vm.bind_slot(slot, source)
