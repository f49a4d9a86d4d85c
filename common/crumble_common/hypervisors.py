"""What is known of a back end before anything runs on it."""

from __future__ import annotations

from crumble_common.record import dataclass

# What a guest's CPU may be: the host's, or a level of the x86-64 psABI, on KVM.
CPU_MODELS = ("host", "x86-64-v2", "x86-64-v3", "x86-64-v4")


@dataclass(frozen=True)
class Probe:
    """What a back end can do on this host.

    present: the host has it at all. usable: it runs stock Linux guests here. reason: one sentence,
    why it is usable or why not. architectures: of guests, as in OCI platforms.
    """

    name: str
    present: bool
    usable: bool
    reason: str
    architectures: tuple[str, ...] = ()
