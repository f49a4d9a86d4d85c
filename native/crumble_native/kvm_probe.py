"""Whether /dev/kvm can be used. See native/include/crumble/kvm_probe.h."""

from __future__ import annotations

from dataclasses import dataclass

from crumble_native._core import ffi, lib

ABSENT: int = lib.CRB_KVM_ABSENT
UNUSABLE: int = lib.CRB_KVM_UNUSABLE
UNTIMED: int = lib.CRB_KVM_UNTIMED
TIMED: int = lib.CRB_KVM_TIMED


@dataclass(frozen=True, slots=True)
class Report:
    """outcome: where the probe ended. error: an errno. The last is 0 when it wasn't measured."""

    outcome: int
    error: int
    instructions_per_second: int


def probe(timeout_ms: int = 3000) -> Report:
    """Runs a small guest, in a child process."""
    raw = ffi.new("crb_kvm_report *")
    lib.crb_kvm_probe(raw, timeout_ms)
    return Report(raw.outcome, raw.error, raw.instructions_per_second)
