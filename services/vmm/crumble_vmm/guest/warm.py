"""Importing this has at hand what every VM needs and else imports or makes itself: for a process that
forks many.
"""

import encodings.ascii

import crumble_vmm.boards.riscv64
import crumble_vmm.boot.fdt
import crumble_vmm.boot.kernel_riscv64
import crumble_vmm.boot.tree_riscv64
import crumble_vmm.devices.generation_id
import crumble_vmm.devices.goldfish_rtc
from crumble_vmm.guest.build import build

_AHEAD = (encodings.ascii, crumble_vmm)

build("riscv64")
