"""QEMU as a peer on an emulated host (exits.py): its files, and the guests that it runs there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tools import kvm_rig
from tools.kvm_foreign import Host, packages
from tools.kvm_rig import Tree

from crumble_vmm.boot.initramfs import Initramfs

_FIRMWARE = (
    "bios-256k.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
)
_PLACES = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
_INIT = "#!/bin/busybox sh\n/bin/busybox poweroff -f\n"
_WORK = """#!/bin/busybox sh
/bin/busybox --install -s /bin
for m in failover net_failover virtio_mmio virtio_net; do insmod /$m.ko; done
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
mkdir -p /dev /share; mount -t devtmpfs dev /dev; mount -t virtiofs share /share
echo READY; sleep 3
dd if=/share/file of=/dev/null bs=64k
echo FILE; sleep 3
dd if=/dev/zero bs=64k count=160 | nc 10.0.2.2 7000
echo SENT; sleep 3
poweroff -f
"""
_FILE_SERVER = Path("/usr/lib/qemu/virtiofsd")
# Debian 13's packages of a foreign host's QEMU.
_PACKAGES = {"arm64": "qemu-system-arm", "riscv64": "qemu-system-riscv"}


def qemu(tree: Tree, host: Host) -> None:
    """QEMU, its firmware and file server, an init that switches off and one that works."""
    if host.foreign is None:
        _native(tree, host)
        busybox = kvm_rig.busybox(kvm_rig.debian())
    else:
        for name, content, mode in _foreign(host):
            if isinstance(content, bytes):
                tree.archive.file(name, content, mode)
            else:
                tree.archive.symlink(name, content)
        tree.archive.symlink("usr/bin/qemu", host.qemu)
        tree.archive.symlink("usr/bin/virtiofsd", "../libexec/virtiofsd")
        busybox = kvm_rig.home_of(host) / "root/usr/bin/busybox"
    kernels = kvm_rig.home_of(host) / "data/store/kernels" / host.architecture
    tree.archive.file("qemu/init.cpio", _guest(busybox, _INIT, []))
    tree.archive.file("qemu/work.cpio", _guest(busybox, _WORK, sorted(kernels.glob("*/*.ko"))))


def _native(tree: Tree, host: Host) -> None:
    """This machine's."""
    binary = shutil.which(host.qemu)
    if binary is None:
        sys.exit("exits: install qemu-system-x86.")
    tree.program(Path(binary))
    tree.archive.symlink("bin/qemu", binary)
    for name in _FIRMWARE:
        found = [place / name for place in _PLACES if (place / name).exists()]
        if found:
            tree.put(found[0].resolve(), f"/qemu/{name}")
    tree.program(_FILE_SERVER)
    tree.archive.symlink("bin/virtiofsd", str(_FILE_SERVER))


def _foreign(host: Host) -> Iterator[tuple[str, bytes | str, int]]:
    """Debian's programs and libraries, less what the host has; as packages() gives them."""
    assert host.foreign is not None
    home, architecture = kvm_rig.home_of(host), host.architecture
    libraries = f"usr/lib/{host.foreign.triplet}"
    programs = (f"usr/bin/{host.qemu}", "usr/libexec/virtiofsd")
    found = packages(home / "peer", architecture, (_PACKAGES[architecture], "virtiofsd"))
    for name, content, mode in found:
        there = home / "root" / name
        wanted = name in programs or name.rpartition("/")[0] == libraries
        if wanted and not (there.is_symlink() or there.exists()):
            yield name, content, mode


def _guest(busybox: Path, init: str, modules: list[Path]) -> bytes:
    """An initramfs for QEMU's guest."""
    inner = Initramfs()
    inner.directory("bin")
    inner.character_device("dev/console", 5, 1)
    inner.file("bin/busybox", busybox.read_bytes(), 0o755)
    inner.file("init", init.encode(), 0o755)
    for path in modules:
        inner.file(path.name, path.read_bytes())
    return b"".join(inner.chunks())
