"""The soft CPU as a hypervisor: riscv64 guests on any host, without privileges (H4)."""

from crumble_vmm.hypervisor.soft.machine import SoftHypervisor

__all__ = ["SoftHypervisor"]
