"""What a VM takes on this host, beside the VMMs that are installed: Firecracker, cloud-hypervisor, QEMU.

    python -m benchmarks.host [--rounds 10] [--image deb:trixie] [--memory 256]

For a real host with KVM (`crumble doctor` says whether it has one); elsewhere it runs on `soft`, beside QEMU's TCG. All boot
the same kernel. Rows, wall times in ms:

  boot     ours: asked for a VM to its agent's answer, with a root file system and without a snapshot;
           a peer's: its process's start to the guest's init, with an initramfs that holds nothing else
  restore  ours: the same from a boot snapshot. A peer's: its process's start to the first that the guest does
  memory   MiB (PSS) of a VM that has booted: all its processes, with its guest's memory
  exec     `true` in a running VM, by the SDK; only we have a way
  run      `crumble run IMAGE true`, the whole command, with `crumble up`
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import crumble
from benchmarks._common import CRUMBLE, Comparison, Sample, supervisor
from benchmarks._host_peers import PEERS, Guest, pss
from benchmarks.boot import ocid
from benchmarks.start import took
from crumble.supervisor.backend import choose
from crumble_ir import compile_text
from crumble_vmm.boot.initramfs import Initramfs

INIT = Path(__file__).with_name("_host_guest.py")


def ours(image: str, memory: int) -> Sample:
    """One round, with `crumble up`."""
    vm = crumble.VM(image, memory=memory << 20, network="none", boot_snapshot=False)
    sample = {"boot": took(vm.start)}
    sample["memory"] = sum(pss(service.pid) for service in vm.info.services)
    sample["exec"] = took(lambda: vm.run(["true"], check=True))
    vm.stop(0)
    vm = crumble.VM(image, memory=memory << 20, network="none")
    sample["restore"] = took(vm.start)
    vm.stop(0)
    words = [CRUMBLE, "run", "--network", "none", "--memory", f"{memory}m", image, "true"]
    sample["run"] = took(lambda: subprocess.run(words, check=True))
    return sample


def initramfs(architecture: str, folder: Path) -> str:
    """What the peers' guests run."""
    archive = Initramfs()
    archive.directory("dev")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", compile_text(INIT.read_text(), architecture), 0o755)
    path = folder / "initramfs"
    path.write_bytes(b"".join(archive.chunks()))
    return str(path)


def main() -> None:
    """The benchmark."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.host", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--image", default="deb:trixie")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB")
    options = parser.parse_args()
    backend = choose("auto")
    kernel = str(ocid("kernel", backend.architecture)["image"])
    with supervisor():
        with crumble.VM(options.image, memory=options.memory << 20, network="none") as vm:
            vm.run(["true"])  # leaves the snapshot
        with tempfile.TemporaryDirectory() as where:
            folder = Path(where)
            made = initramfs(backend.architecture, folder)
            guest = Guest(backend.architecture, kernel, made, options.memory)
            sides = {"crumble": lambda: ours(options.image, options.memory)}
            for peer in PEERS:
                if peer.there(guest.architecture):
                    sides[peer.command] = peer(guest, folder).sample
            comparison = Comparison(
                "host", "see rows", {"hypervisor": backend.name, **vars(options)}
            )
            comparison.measure(sides, options.rounds)
        print(comparison.table())
        print(comparison.save())


if __name__ == "__main__":
    main()
