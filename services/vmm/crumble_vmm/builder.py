"""build_machine: the one recipe of a machine, top to bottom. It ends with a machine that is built and
stands still; `Machine.run` lets it go. What differs between architectures is its board's (boards/).
"""

from __future__ import annotations

from crumble_common.guest_memory import GuestMemory
from crumble_vmm.boards import board_for
from crumble_vmm.boards.base import Ends
from crumble_vmm.chipset.bus import Bus
from crumble_vmm.config import MachineConfig
from crumble_vmm.hypervisor import choose
from crumble_vmm.hypervisor.address_space import AddressSpace
from crumble_vmm.hypervisor.soft import SoftHypervisor
from crumble_vmm.machine import Machine
from crumble_vmm.timeline import Timeline


def build_machine(config: MachineConfig, ends: Ends, timeline: Timeline) -> Machine:
    """A machine, loaded and standing still; without anything loaded when there is a base. CrumbleError."""
    hypervisor, probe = choose(config.hypervisor)
    if ends.lockstep is not None:
        hypervisor = SoftHypervisor(deterministic=True)
    recipe = board_for(probe.architectures[0])
    with timeline.phase("memory map"):
        space = AddressSpace()
        regions = recipe.regions(config.memory)
        for number, region in enumerate(regions):
            space.add_ram(f"ram{number}", region.gpa, region.size)
        recipe.reserve(space)
        memory = GuestMemory.attach(*ends.memory, regions, ends.base)
    with timeline.phase("machine build"):
        vm = hypervisor.create_vm(memory.memory, config.cpus, config.cpu_model, config.irqchip)
        board = recipe(vm, space, memory)
        board.add_platform(ends)
        if config.watchdog:
            board.add_watchdog(ends)
        board.add_virtio(config, ends)
        chipset, ports = board.chipset.build(), Bus(board.ports)
        cpus = [
            vm.create_cpu(index, chipset.bus, ends.console, ports) for index in range(config.cpus)
        ]
    if ends.base is None:
        board.load(config, ends, cpus, timeline)
    return Machine(vm, cpus, chipset, memory, ends.loop, hypervisor.name, recipe.architecture)
