"""Importing this has at hand what every VM needs: for a process that forks many."""

from crumble_common import sandbox
from crumble_vmm.boards import board_for
from crumble_vmm.guest.build import build

build("riscv64")
board_for("riscv64")
sandbox.warm(sandbox.Profile())
