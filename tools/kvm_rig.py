"""An emulated host with hardware virtualization, for tests of KVM where there is none (`make test-kvm`).

QEMU's TCG emulates a CPU that virtualizes (AMD's SVM, arm64's EL2); Debian's kernel inside has a true
/dev/kvm; there this checkout runs unmodified, with this machine's Python or, on another architecture,
Debian's (kvm_foreign.py), and its guests are stock kernels. One uncompressed
initramfs holds all of it. Each check prints a line "RIG ok NAME" or "RIG failed NAME".
"""

from __future__ import annotations

import argparse
import io
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / room) for room in ("services/vmm", "services/ocid", "common", "native", "tools")
]

from kvm_foreign import HOSTS, Foreign, Host, System, stock_modules  # noqa: E402  from the rooms above

from crumble_native import kvm  # noqa: E402  from the rooms above
from crumble_ocid.kernel_provider import module_needs  # noqa: E402  from the rooms above
from crumble_vmm.boot.initramfs import Initramfs  # noqa: E402  from the rooms above

HOME = ROOT / "build" / "kvm-rig"
MACHINE = [
    "-accel", "tcg,thread=multi", "-m", "1536", "-smp", "1", "-nodefaults",
    "-serial", "stdio", "-display", "none", "-no-reboot",
]  # fmt: skip
CMDLINE = "quiet panic=-1 mitigations=off cryptomgr.notests"
# Exit status: there is nothing wrong, but no host either.
CANNOT = 77
MODULES = ("irqbypass", "kvm", "kvm-amd")
PACKAGES = (
    "cffi", "_cffi_backend.cpython-311-x86_64-linux-gnu.so", "msgpack", "zmq", "pyzmq.libs",
    "platformdirs", "posix_ipc.cpython-311-x86_64-linux-gnu.so", "zstandard", "pycparser", "elftools",
    "httpx", "httpcore", "h11", "anyio", "idna", "certifi", "rich", "typing_extensions.py", "pygments",
    "markdown_it", "mdurl", "pysequoia",
)  # fmt: skip
# What guests have of busybox.
SHELL = "sh echo cat uname ls nproc dd md5sum sleep mv grep true wc watchdog".split()
# Of the standard library, what no service imports.
UNWANTED = re.compile(
    r"/(test|tests|idlelib|lib2to3|ensurepip|tkinter|turtledemo|pydoc_data|site-packages|__pycache__"
    r"|config-3[^/]*)(/|$)"
)
ROOMS = (
    "compose", *(f"services/{path.name}" for path in sorted((ROOT / "services").iterdir())),
    "common", "native",
)  # fmt: skip
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; ip link set lo up
for m in @MODULES@; do insmod /modules/$m.ko; done
export PYTHONHOME=@HOME@ PYTHONPATH=@PATH@ HOME=/root PATH=/bin CRUMBLE_DATA_DIR=/data
export PYTHONDONTWRITEBYTECODE=1
echo "RIG up $(cut -d' ' -f1 /proc/uptime) s, $(ls /dev/kvm)"
cd /; /bin/busybox sh /checks
echo "RIG end"
poweroff -f
"""


class Tree:
    """The initramfs, filled with files of this machine at their own places."""

    def __init__(self) -> None:
        self.archive = Initramfs()
        self._seen: set[str] = set()

    def put(self, source: Path, target: str = "") -> None:
        """A file, at its own place when there is no other."""
        target = (target or str(source)).lstrip("/")
        if target not in self._seen:
            self._seen.add(target)
            mode = 0o755 if os.access(source, os.X_OK) else 0o644
            self.archive.file(target, source.read_bytes(), mode)
            if source.suffix == ".py":
                self._compiled(source, target)

    def _compiled(self, source: Path, target: str) -> None:
        """Its bytecode beside it: imports take a third of the time. Kept for the next run."""
        kept = HOME / "pyc" / sha256(source.read_bytes()).hexdigest()
        if not kept.exists():
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            if not py_compile.compile(
                str(source), str(kept), target, quiet=2, invalidation_mode=mode
            ):
                return
        folder, _, name = target.rpartition("/")
        tag = sys.implementation.cache_tag
        name = f"{folder}/__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
        self.archive.file(name, kept.read_bytes())

    def text(self, target: str, text: str, mode: int = 0o644) -> None:
        """A file with this content."""
        self.archive.file(target, text.encode(), mode)

    def folder(self, source: Path, target: str = "", *, keep: Iterable[str] = ()) -> None:
        """All files below `source`, less what is UNWANTED."""
        for path in sorted(source.rglob("*")):
            inner = str(path.relative_to(source))
            if path.is_file() and (keep or not UNWANTED.search(f"/{inner}")):
                self.put(path, f"{target or source}/{inner}")

    def program(self, path: Path) -> None:
        """An executable or library, with the libraries it is linked to."""
        self.put(path.resolve(), str(path))
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        for found in re.findall(r"(/\S+) \(0x", listed):
            self.put(Path(found).resolve(), found)


def debian() -> Path:
    """The host's kernel and busybox, from Debian's packages; where they are unpacked."""
    out = HOME / "debian"
    if not (out / "done").exists():
        out.mkdir(parents=True, exist_ok=True)
        listed = subprocess.check_output(
            ["apt-cache", "depends", "linux-image-cloud-amd64"], text=True
        )
        kernel = re.search(r"Depends: (linux-image-\S+)", listed)
        if kernel is None:
            raise OSError("apt knows no linux-image-cloud-amd64")
        subprocess.run(
            ["apt-get", "download", "-q", kernel[1], "busybox-static"], cwd=out, check=True
        )
        for package in out.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, out], check=True)
        (out / "done").touch()
    return out


def image(busybox: Path, home: Path, architecture: str) -> Path:
    """An OCI layout with busybox and nothing else."""
    layout = home / "image"
    shutil.rmtree(layout, ignore_errors=True)
    (layout / "blobs" / "sha256").mkdir(parents=True)
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in SHELL:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        for name in ("tmp", "etc", "root", "proc", "sys", "dev", "run"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
    data = layer.getvalue()
    config = {
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(data).hexdigest()}"]},
    }  # fmt: skip
    kinds = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2, "mediaType": f"{kinds}.manifest.v1+json",
        "config": _blob(layout, json.dumps(config).encode(), f"{kinds}.config.v1+json"),
        "layers": [_blob(layout, data, f"{kinds}.layer.v1.tar")],
    }  # fmt: skip
    top = _blob(layout, json.dumps(manifest).encode(), manifest["mediaType"])
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout


def _blob(layout: Path, data: bytes, kind: object) -> dict[str, object]:
    digest = sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def store(home: Path, architecture: str) -> Path:
    """A data directory with the guest's kernel in it, and its init."""
    data = home / "data"
    env = {**os.environ, "CRUMBLE_DATA_DIR": str(data)}
    for words in (
        ["-m", "crumble_ocid", "kernel", "--json", architecture],
        ["-c", f"from crumble_vmm.guest import build; build('{architecture}')"],
    ):
        subprocess.run([sys.executable, *words], env=env, check=True, stdout=subprocess.DEVNULL)
    return data


def python(tree: Tree) -> tuple[str, str]:
    """This Python, what it needs, and this checkout; gives PYTHONHOME and PYTHONPATH."""
    real = Path(sys.executable).resolve()
    tree.program(real)
    tree.archive.symlink("bin/python3", str(real))
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    tree.folder(stdlib)
    for library in stdlib.glob("lib-dynload/*.so"):
        tree.program(library)
    site = Path(sysconfig.get_paths()["purelib"])
    for name in PACKAGES:
        path = site / name
        if path.is_dir():
            tree.folder(path, f"/site/{name}")
        elif path.exists():
            tree.put(path, f"/site/{name}")
    for library in [*site.glob("zmq/**/*.so"), *site.glob("*.so")]:
        for found in _libraries(library):
            tree.put(Path(found).resolve(), found)
    for room in ROOMS:
        tree.folder(ROOT / room, f"/crumble/{room}")
    tree.folder(ROOT / "common" / "crumble_ir", "/crumble/common/crumble_ir")
    path = ":".join([*(f"/crumble/{room}" for room in ROOMS), "/site"])
    return sys.base_prefix, path


def _libraries(path: Path) -> list[str]:
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return [found for found in re.findall(r"(/\S+) \(0x", listed) if "site-packages" not in found]


def modules(tree: Tree, debs: Path) -> list[str]:
    """KVM's modules with what they depend on; gives their names in load order."""
    files = {path.stem.replace("-", "_"): path for path in debs.glob("lib/modules/**/*.ko")}
    order: list[str] = []

    def visit(name: str) -> None:
        data = files[name].read_bytes()
        for need in module_needs(data):
            visit(need)
        if name not in order:
            order.append(name)
            tree.put(files[name], f"modules/{name}.ko")

    for name in MODULES:
        visit(name.replace("-", "_"))
    return order


def busybox(debs: Path) -> Path:
    """Debian's static one."""
    return next(path for path in (debs / "bin/busybox", debs / "usr/bin/busybox") if path.exists())


def native(tree: Tree, host: Host, home: Path) -> tuple[Path, Path, str]:
    """This machine's Python on a kernel of Debian's; the kernel, busybox and the script that starts it all."""
    debs = debian()
    shell = busybox(debs)
    tree.put(shell, "bin/busybox")
    (bzimage,) = debs.glob("boot/vmlinuz-*")
    tree.put(bzimage, "/bzImage")
    if host.modules:
        files = stock_modules(host.architecture, host.modules, home)
        kernel, order = files[0].with_name("image"), [path.stem for path in files]
        for path in files:
            tree.put(path, f"modules/{path.name}")
    else:
        kernel, order = bzimage, modules(tree, debs)
    prefix, path = python(tree)
    script = INIT.replace("@MODULES@", " ".join(order)).replace("@HOME@", prefix)
    return kernel, shell, script.replace("@PATH@", path)


def foreign(tree: Tree, data: Path, home: Path, what: Foreign) -> tuple[Path, Path, str]:
    """As native(), of Debian's packages and the guests' kernel."""
    system = System(what, home)
    system.build(ROOMS)
    for name, path in system.members():
        if path.is_symlink():
            tree.archive.symlink(name, str(path.readlink()))
        else:
            tree.archive.file(name, path.read_bytes(), path.stat().st_mode & 0o777)
    (kernel,) = data.glob(f"store/kernels/{what.architecture}/*/image")
    order = system.modules()
    for module in order:
        tree.put(module, f"modules/{module.name}")
    path = ":".join([*(f"/crumble/{room}" for room in ROOMS), "/site"])
    names = " ".join(module.stem for module in order)
    script = INIT.replace("@MODULES@", names).replace("@HOME@", "").replace("@PATH@", path)
    return kernel, system.root / "usr/bin/busybox", script


def home_of(host: Host) -> Path:
    """Where what the host is made of is kept."""
    return HOME if host.foreign is None else HOME / host.architecture


def build(
    host: Host, checks: str, *, short: bool, more: Callable[[Tree], None] = lambda _tree: None
) -> tuple[Path, Path]:
    """The emulated host: its kernel and its initramfs, with what `more` puts there."""
    if shutil.which(host.qemu) is None:
        raise OSError(f"{host.qemu} is missing: install {host.package}")
    home = home_of(host)
    home.mkdir(parents=True, exist_ok=True)
    data = store(home, host.architecture)
    tree = Tree()
    for name in ("root", "proc", "sys", "etc", "dev", "run", "tmp"):
        tree.archive.directory(name)
    tree.archive.character_device("dev/console", 5, 1)
    made = (
        native(tree, host, home)
        if host.foreign is None
        else foreign(tree, data, home, host.foreign)
    )
    kernel, shell, script = made
    image(shell, home, host.architecture)
    more(tree)
    tree.folder(data, "/data", keep=("all",))
    tree.folder(home / "image", "/image", keep=("all",))
    tree.text("init", script, 0o755)
    tree.text("checks", checks)
    if short:
        tree.text("short", "")
    tree.text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    tree.text("etc/group", "root:x:0:\n")
    out = home / "host.cpio"
    with out.open("wb") as file:
        for chunk in tree.archive.chunks():
            file.write(chunk)
    return kernel, out


def clock() -> str:
    """The frequency of this machine's time-stamp counter, which is the emulated one's too, as kernel words.

    A host that calibrates its clock while others work is off by a multiple, and so is every time limit.
    """
    try:
        vm = kvm.Vm(kvm.IRQCHIP_SPLIT)
    except OSError:
        return ""  # nobody else knows
    try:
        return f" tsc_early_khz={vm.create_vcpu(0).tsc_khz}"
    finally:
        vm.close()


def run(host: Host, kernel: Path, initramfs: Path, limit: float) -> Iterator[str]:
    """Boots the host; its console's lines, until it ends."""
    command = [
        host.qemu, *MACHINE, *host.machine, "-kernel", kernel, "-initrd", initramfs, "-append",
        f"{host.cmdline} {CMDLINE}{clock() if host.foreign is None else ''}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        errors="replace",
    )  # fmt: skip
    assert process.stdout is not None
    end = time.monotonic() + limit
    try:
        for line in process.stdout:
            yield line.rstrip()
            if time.monotonic() > end:
                yield "RIG failed: out of time"
                return
    finally:
        process.kill()
        process.wait()


def main() -> int:
    """Builds the host, runs the checks in it; 0 when all passed, CANNOT when it cannot be built."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", nargs="?", choices=sorted(HOSTS), default="x86_64")
    parser.add_argument("--checks", type=Path, default=ROOT / "tools" / "kvm_checks.sh")
    parser.add_argument("--short", action="store_true", help="only what `make test` runs")
    parser.add_argument("--limit", type=float, default=900.0, metavar="S")
    options = parser.parse_args()
    try:
        host = HOSTS[options.arch]
        kernel, initramfs = build(host, options.checks.read_text(), short=options.short)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"kvm_rig: what it is made of cannot be had here: {error}", file=sys.stderr)
        return CANNOT
    failed, ended = False, False
    start = time.monotonic()
    for line in run(host, kernel, initramfs, options.limit):
        print(f"{time.monotonic() - start:7.1f}  {line}", flush=True)
        failed = failed or "RIG failed" in line
        ended = ended or line.endswith("RIG end")
    return 1 if failed or not ended else 0


if __name__ == "__main__":
    sys.exit(main())
