"""Boards: what a machine of one architecture is made of, and how a kernel is started on it."""

from __future__ import annotations

from crumble_common.errors import InternalError
from crumble_vmm.boards.base import Board


def board_for(architecture: str) -> type[Board]:
    """The board of an architecture, as in OCI platforms."""
    if architecture == "riscv64":
        from crumble_vmm.boards.riscv64 import Riscv64Board

        return Riscv64Board
    if architecture == "amd64":
        from crumble_vmm.boards.x86_64 import X8664Board

        return X8664Board
    if architecture == "arm64":
        from crumble_vmm.boards.arm64 import Arm64Board

        return Arm64Board
    raise InternalError(f"There is no board for {architecture}.", code="vmm.board")
