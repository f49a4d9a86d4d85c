"""Importing this has the guest's /init at hand: for a process that forks many VMs."""

from crumble_vmm.guest.build import build

build("riscv64")
