"""`crumble-vmm`: one VM without a supervisor, its console on this terminal; or what this host can run.

    crumble-vmm --probe [--json]
    crumble-vmm --kernel vmlinux --initrd-module virtio_mmio.ko.xz --fs /run/fsd.sock [-- CMD ARG…]

With a command, that runs in the guest with this terminal as its own, and its exit status is ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from crumble_common.errors import CrumbleError, UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def main(argv: Sequence[str] | None = None) -> int:
    """Under the supervisor without arguments, by flags with them; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        from crumble_common.service import service_main
        from crumble_vmm.service import VmmService

        return service_main(VmmService)
    options = _parser().parse_args(arguments)
    try:
        return _probe(options.json or not sys.stdout.isatty()) if options.probe else _run(options)
    except CrumbleError as error:
        sys.stderr.write(f"crumble-vmm: {error}\n")
        return 125


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crumble-vmm", description="Runs one virtual machine.")
    add = parser.add_argument
    add("--probe", action="store_true", help="say which hypervisors work here, and end")
    add("--json", action="store_true", help="with --probe: as JSON, also on a terminal")
    add("--kernel", type=Path, metavar="FILE", help="riscv64 Image: raw, gzip, zstd or EFI zboot")
    add("--initrd-module", type=Path, action="append", default=[], metavar="FILE",
        help="kernel module to load before anything else; in order, repeatable")  # fmt: skip
    add("--fs", action="append", default=[], metavar="SOCKET[:TAG]",
        help="vhost-user socket of a virtio-fs server; the first is the root; TAG: root, fs1, …")  # fmt: skip
    add("--memory", type=_size, default=512 << 20, metavar="SIZE", help="like 512M or 2G")
    add("--cpus", type=int, default=1, metavar="N")
    add("--cmdline", default="", help="appended to the kernel's command line")
    add("--hv", default="auto", help="back end: auto, soft or kvm")
    add("--transport", choices=("mmio", "pci"), default="mmio", help="of virtio devices")
    add("--watchdog", action="store_true", help="one that ends the VM when the guest hangs")
    add("--irqchip", choices=("split", "kernel"), default="split", help="who has x86_64's IOAPIC")
    add("--cpu-model", default="host", help="on KVM: host or x86-64-v2, -v3, -v4")
    add("--hostname", default="")
    add("--quiet", action="store_true", help="no kernel messages")
    add("--timeline", action="store_true", help="print where the boot's time went")
    add("command", nargs="*", metavar="CMD", help="to run in the guest")
    return parser


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdigit() or unit not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: use something like 512M")
    return int(number) * _UNITS[unit]


def _probe(as_json: bool) -> int:
    import dataclasses

    from crumble_vmm.hypervisor import probe_all

    probes = probe_all()
    if as_json:
        sys.stdout.write(
            json.dumps([dataclasses.asdict(probe) for probe in probes], indent=2) + "\n"
        )
        return 0
    for probe in probes:
        state = "usable" if probe.usable else "not usable"
        sys.stdout.write(f"{probe.name:6} {state:12} {probe.reason}\n")
    return 0


def _run(options: argparse.Namespace) -> int:
    from crumble_vmm.standalone import run

    if options.kernel is None:
        raise UsageError("No kernel was given.", hint="Use --kernel FILE.")
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
