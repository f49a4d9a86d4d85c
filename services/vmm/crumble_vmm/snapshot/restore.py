"""A captured VM's state into a machine that was built for it and has not run."""

from __future__ import annotations

from crumble_common.wire import WireError, validate
from crumble_vmm.chipset.builder import Chipset
from crumble_vmm.config import MachineConfig
from crumble_vmm.hypervisor import choose
from crumble_vmm.machine import Machine
from crumble_vmm.snapshot.state import VmState, corrupt, foreign


def check(state: VmState, config: MachineConfig) -> None:
    """Raises UsageError "snapshot.foreign" when the state is not one of a machine as configured."""
    hypervisor, probe = choose(config.hypervisor)
    for what, has, wanted in (
        ("the architecture", state.architecture, probe.architectures[0]),
        ("the hypervisor", state.hypervisor, hypervisor.name),
        ("the memory's size", state.memory, config.memory),
        ("the number of vCPUs", len(state.cpus), config.cpus),
    ):
        if has != wanted:
            raise foreign(f"{what} is {has!r:.40}, this VM's is {wanted!r}")


def apply(state: VmState, machine: Machine) -> None:
    """Sets everything but the agent's session. Raises UsageError; the machine is then of no use."""
    devices = machine.chipset.devices
    if state.devices.keys() != devices.keys():
        names = ", ".join(sorted(state.devices.keys() ^ devices.keys()))
        raise foreign(f"it has other devices ({names:.200})")
    try:
        machine.vm.set_time(_ticks(state.time))
        machine.vm.set_controller(state.controller)
        for cpu, values in zip(machine.cpus, state.cpus, strict=True):
            cpu.set_state(values)
        _set_devices(state, machine.chipset)
    except (ValueError, WireError) as error:
        raise corrupt(str(error)) from None


def _ticks(time: int) -> int:
    if not 0 <= time < 1 << 62:
        raise ValueError(f"the time is {time}")
    return time


def _set_devices(state: VmState, chipset: Chipset) -> None:
    for name, device in chipset.devices.items():
        try:
            device.set_state(validate(device.state_type, state.devices[name], name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
