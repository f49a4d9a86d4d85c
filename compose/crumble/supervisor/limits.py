"""What a VM may be asked to be. Each refusal names the limits."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import get_args

from crumble_common.errors import UsageError
from crumble_common.hypervisors import CPU_MODELS
from crumble_common.messages.client import VmCreate
from crumble_common.messages.image import PullPolicy

MIB = 1 << 20
# With less a stock Debian kernel does not reach its init (88 MB do, 80 MB do not).
MIN_MEMORY = 96 * MIB
# vmm maps guest memory in units of this.
MEMORY_UNIT = 2 * MIB
MAX_CPUS = 16
MAX_BOOT = 86_400  # s
_HOSTNAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,62}[a-zA-Z0-9])?")


def host_memory() -> int:
    """Bytes of RAM in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory() -> int:
    """Bytes of RAM that could be had (proc(5), MemAvailable)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def written_files() -> int:
    """Bytes that the files a guest writes may take of this machine's RAM, where they are kept."""
    return min(host_memory() // 2, 8 << 30)


def check(request: VmCreate) -> None:
    """Raises UsageError for a VM that cannot be."""
    _check_memory(request.memory)
    if not 1 <= request.cpus <= MAX_CPUS:
        raise UsageError(
            f"A VM cannot have {request.cpus} CPUs.",
            code="vm.cpus",
            hint=f"Give it between 1 and {MAX_CPUS}.",
        )
    if not 0 < request.boot_timeout <= MAX_BOOT:
        raise UsageError(
            f"A VM cannot have {request.boot_timeout:g} s to boot.",
            code="vm.boot_timeout",
            hint=f"Give it more than 0 and at most {MAX_BOOT} s.",
        )
    if request.hypervisor not in ("auto", "soft", "kvm"):
        raise UsageError(
            f"There is no back end {request.hypervisor!r}.",
            code="vm.hypervisor",
            hint="Choose auto, soft or kvm; `crumble doctor` shows which are usable.",
        )
    if request.cpu_model not in CPU_MODELS:
        raise UsageError(
            f"There is no CPU model {request.cpu_model!r:.80}.",
            code="vm.cpu_model",
            hint=f"Choose one of {', '.join(CPU_MODELS)}.",
        )
    if request.pull not in get_args(PullPolicy):
        raise UsageError(
            f"There is no pull policy {request.pull!r}.",
            code="vm.pull",
            hint="Choose missing, always or never.",
        )
    if request.hostname and not _HOSTNAME.fullmatch(request.hostname):
        raise UsageError(
            f"{request.hostname!r} is no host name.",
            code="vm.hostname",
            hint="Use letters, digits, dots and hyphens, at most 64.",
        )
    if request.seed:
        _check_deterministic(request)
    elif request.record or request.replay:
        raise UsageError(
            "Only a deterministic VM can be recorded.",
            code="vm.recording",
            hint="Add --deterministic.",
        )
    for share in request.shares:
        _check_share(share.source, share.target)


def _check_deterministic(request: VmCreate) -> None:
    for wrong, text, hint in (
        (request.cpus != 1, "has one CPU", "Leave --cpus away."),
        (request.network != "none", "has no network", "Give --network none."),
        (request.hypervisor == "kvm", "does not run on KVM", "Leave --hv away."),
        (request.transport != "mmio", "has its devices without PCI", "Leave --transport away."),
        (request.watchdog, "has no watchdog", "Leave --watchdog away."),
        (bool(request.snapshot), "begins with its boot", "Name an image, not a snapshot."),
        (
            bool(request.record and request.replay),
            "is recorded or replayed, not both",
            "Leave one away.",
        ),
        (
            bool((request.record or request.replay) and request.shares),
            "cannot be recorded with shares",
            "Copy the files into it with `crumble cp`.",
        ),
    ):
        if wrong:
            raise UsageError(f"A deterministic VM {text}.", code="vm.deterministic", hint=hint)


def _check_memory(size: int) -> None:
    most = host_memory()
    if MIN_MEMORY <= size <= most:
        return
    raise UsageError(
        f"A VM cannot have {size / MIB:.0f} MB of memory.",
        code="vm.memory",
        hint=f"Give it between {MIN_MEMORY // MIB}m and {most // MIB}m, what this machine has.",
    )


def _check_share(source: str, target: str) -> None:
    if not target.startswith("/") or target == "/" or ".." in target.split("/"):
        raise UsageError(
            f"{target!r} cannot be a place for a share in the guest.",
            code="share.target",
            hint="Give an absolute path below /.",
        )
    try:
        Path(source).stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"The share {source} does not exist.",
            code="share.source",
            hint="-v takes HOST_PATH:GUEST_PATH[:ro].",
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"The share {source} cannot be used: {getattr(error, 'strerror', error)}.",
            code="share.source",
            hint="Check that you may use it, or share something else.",
        ) from None


def rounded_memory(size: int) -> int:
    """`size`, rounded up to what can be mapped."""
    return -(-size // MEMORY_UNIT) * MEMORY_UNIT
