"""Emulated hosts, and the system of one where its architecture is not this machine's: Debian packages, with this
checkout and its C core, cross-compiled, in them. tools/kvm_rig.py makes an initramfs of it.

The packages are an image of our own making (`deb:`). Bytecode is compiled by the system's own Python,
under qemu's user emulation, for files that changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from crumble_common.layer_index import LayerIndex

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "python3", "python3-cffi-backend", "python3-msgpack", "python3-zmq", "python3-platformdirs",
    "python3-zstandard", "python3-httpx", "python3-rich", "busybox-static",
)  # fmt: skip
# Of the packages' files, what no check needs.
UNWANTED = (
    "/share/", "/perl", "/gconv/", "/locale/", "/test/", "/tests/", "/idlelib/", "/ensurepip/",
    "/lib2to3/", "/pydoc_data/", "/tkinter/", "/pygments/", "/terminfo/", "/apt/", "/dpkg/",
    "/modules/", "/systemd/", "/udev/", "/firmware/", "/linux-image", "/initramfs-tools/",
)  # fmt: skip
# Fetches a kernel with other modules than a guest's.
MODULES = """
import sys
from crumble_ocid import cli, kernels
kernels.WANTED.clear()
kernels.WANTED.update(item.split("=") for item in sys.argv[2:])
sys.exit(cli.run(["kernel", "--json", sys.argv[1]]))
"""
# What tests/quest needs of this machine's packages: Python of any architecture.
TESTS = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py.py")
# There is no package of posix_ipc; without it guest memory is a memfd.
POSIX_IPC = """class Error(Exception): pass
O_CREX = 0
def SharedMemory(*_, **__): raise Error
"""


@dataclass(frozen=True)
class Foreign:
    """An architecture. triplet: of the cross compiler. cpu: that programs are emulated on. modules: of its
    kernel, for KVM, with their options.
    """

    architecture: str
    machine: str
    triplet: str
    cpu: str
    modules: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Host:
    """An emulated host. architecture: of its guests. foreign: it is not this machine's. modules: for KVM, with their
    options, of the guests' kernel, which it runs then; none: it runs this machine's Debian's.
    """

    architecture: str
    qemu: str
    package: str
    machine: tuple[str, ...]
    cmdline: str
    foreign: Foreign | None = None
    modules: dict[str, str] = field(default_factory=dict)


# -cx16: QEMU 7.2 corrupts the flags around cmpxchg16b. One CPU: the emulation of SVM is at its best.
# cortex-a76: has no pointer authentication, whose emulation makes Debian's programs four times slower.
HOSTS = {
    "x86_64": Host("amd64", "qemu-system-x86_64", "qemu-system-x86", ("-cpu", "EPYC,-cx16"),
                   "console=ttyS0 tsc=reliable"),
    "x86_64-trixie": Host("amd64", "qemu-system-x86_64", "qemu-system-x86", ("-cpu", "EPYC,-cx16"),
                          "console=ttyS0 tsc=reliable", modules={
                              "irqbypass": "CONFIG_IRQ_BYPASS_MANAGER", "kvm": "CONFIG_KVM",
                              "kvm_amd": "CONFIG_KVM_AMD", "ccp": "CONFIG_CRYPTO_DEV_CCP_DD"}),
    "arm64": Host("arm64", "qemu-system-aarch64", "qemu-system-arm",
                  ("-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a76"),
                  "console=ttyAMA0", Foreign("arm64", "aarch64", "aarch64-linux-gnu", "cortex-a76")),
    "arm64-gicv2": Host("arm64", "qemu-system-aarch64", "qemu-system-arm",
                        ("-M", "virt,virtualization=on,gic-version=2", "-cpu", "cortex-a76"),
                        "console=ttyAMA0", Foreign("arm64", "aarch64", "aarch64-linux-gnu", "cortex-a76")),
    "riscv64": Host("riscv64", "qemu-system-riscv64", "qemu-system-misc",
                    ("-M", "virt", "-cpu", "rv64,h=true"), "console=ttyS0",
                    Foreign("riscv64", "riscv64", "riscv64-linux-gnu", "rv64", {"kvm": "CONFIG_KVM"})),
}  # fmt: skip


def stock_modules(architecture: str, modules: dict[str, str], home: Path) -> list[Path]:
    """These of the guests' kernel, in load order, fetched below `home`; the kernel's `image` is beside them."""
    if not modules:
        return []
    wanted = [f"{name}={option}" for name, option in modules.items()]
    words = [sys.executable, "-c", MODULES, architecture, *wanted]
    env = {**os.environ, "CRUMBLE_DATA_DIR": str(home / "host")}
    told = subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Path(path) for path in json.loads(told)["modules"]]


class System:
    """The host's root file system, below `home`, and the files of it."""

    def __init__(self, foreign: Foreign, home: Path) -> None:
        self._foreign, self._home = foreign, home
        self.root = home / "root"

    def build(self, rooms: tuple[str, ...]) -> None:
        """All of it; OSError or CalledProcessError for what cannot be had here."""
        for tool in (self._compiler, self._emulator):
            if shutil.which(tool) is None:
                raise OSError(
                    f"{tool} is missing: install gcc-{self._foreign.triplet} and qemu-user"
                )
        if not (self.root / "done").exists():
            self._unpack()
            self._compile("/usr/lib/python3", self._library)
            (self.root / "done").touch()
        self._put("site/posix_ipc.py", POSIX_IPC.encode())
        for package in TESTS:
            self._copy(Path(sysconfig.get_paths()["purelib"], package), f"site/{package}")
        for folder in ("framework", "quest"):
            self._copy(ROOT / "tests" / folder, f"tests/{folder}")
        for room in rooms:
            self._copy(ROOT / room, f"crumble/{room}")
        self._put("crumble/native/crumble_native/_core.abi3.so", self._core())
        self._compile("/crumble", "/site/_pytest", "/tests")

    def modules(self) -> list[Path]:
        """Its kernel's modules for KVM, in load order."""
        return stock_modules(self._foreign.architecture, self._foreign.modules, self._home)

    def _copy(self, folder: Path, target: str) -> None:
        """Python's sources below a folder; or one."""
        if folder.is_file():
            self._put(target, folder.read_bytes())
        for path in sorted(folder.rglob("*.py")):
            self._put(f"{target}/{path.relative_to(folder)}", path.read_bytes())

    @property
    def _compiler(self) -> str:
        return f"{self._foreign.triplet}-gcc"

    @property
    def _emulator(self) -> str:
        return f"qemu-{self._foreign.machine}"

    @property
    def _library(self) -> str:
        (path,) = self.root.glob("usr/lib/python3.*[0-9]")
        return f"/{path.relative_to(self.root)}"

    def _unpack(self) -> None:
        """What the checks need of the packages."""
        shutil.rmtree(self.root, ignore_errors=True)
        found = packages(self._home / "packages", self._foreign.architecture, PACKAGES)
        for name, content, mode in found:
            if isinstance(content, bytes):
                self._put(name, content, mode)
            else:
                path = self.root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(content)

    def _put(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A file of the year 1970, as the initramfs has them, since bytecode names its source's time."""
        path = self.root / name
        if path.is_file() and path.read_bytes() == data:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            old.unlink()
        path.write_bytes(data)
        path.chmod(mode)
        os.utime(path, (0, 0))

    def _compile(self, *folders: str) -> None:
        python = [
            self._emulator,
            "-L",
            self.root,
            self.root / "usr/bin/python3",
            "-m",
            "compileall",
        ]
        env = {
            **os.environ, "PYTHONHOME": str(self.root / "usr"), "QEMU_CPU": self._foreign.cpu
        }  # fmt: skip
        places = [str(self.root / folder.lstrip("/")) for folder in folders]
        words = [str(word) for word in python]
        subprocess.run([*words, "-q", *places], env=env, check=False)

    def _core(self) -> bytes:
        """The C core; the stable ABI lets it be built with this Python's headers."""
        source, out = self._home / "_core.c", self._home / "_core.so"
        script = (
            "import native.build_core as b; b.ffibuilder.emit_c_code(__import__('sys').argv[1])"
        )
        subprocess.run([sys.executable, "-c", script, source], cwd=ROOT, check=True)
        files = sorted((ROOT / "native/src").rglob("*.c"))
        include = [ROOT / "native/include", ROOT / "native/src", sysconfig.get_paths()["include"]]
        flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-fPIC", "-shared", "-fno-strict-aliasing"]
        words = [self._compiler, *flags, *(f"-I{path}" for path in include), source, *files]
        # GCC before 13 calls a library for what is atomic and short on riscv64.
        libraries = ["-lm", "-lpthread", "-Wl,--as-needed,-Bstatic", "-latomic", "-Wl,-Bdynamic"]
        subprocess.run([*map(str, words), "-o", str(out), *libraries], check=True)
        return out.read_bytes()

    def members(self) -> Iterator[tuple[str, Path]]:
        """(name, place here) of every file and symlink."""
        for folder, names, files in os.walk(self.root):
            for name in [*files, *(name for name in names if Path(folder, name).is_symlink())]:
                path = Path(folder, name)
                yield str(path.relative_to(self.root)), path


def packages(
    data: Path, architecture: str, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes | str, int]]:
    """Debian's packages with what they depend on, kept in a data directory of their own: (name, content, mode) of each file
    below /usr that is wanted, and of each symlink, whose content is its target.
    """
    reference = f"deb:trixie/{','.join(names)}"
    platform = f"linux/{architecture}"
    words = [sys.executable, "-m", "crumble_ocid", "pull", "--platform", platform, reference]
    env = {**os.environ, "CRUMBLE_DATA_DIR": str(data)}
    subprocess.run(words, env=env, check=True, stdout=subprocess.DEVNULL)
    (found,) = data.glob("store/layers/*.index")
    layer = LayerIndex.open(found)
    contents = found.with_suffix(".contents").read_bytes()
    for name, row in _files(layer, 0, ""):
        entry = layer.entry(row)
        if entry.target:
            yield name, os.fsdecode(entry.target), 0o777
        elif f"/{name}".startswith("/usr/") and not any(part in f"/{name}" for part in UNWANTED):
            start = layer.entry(entry.link).offset
            yield name, contents[start : start + entry.size], entry.mode & 0o777


def _files(layer: LayerIndex, row: int, name: str) -> Iterator[tuple[str, int]]:
    """Files and symlinks below a directory of a layer."""
    for child in layer.children(row):
        entry = layer.entry(child)
        path = f"{name}/{os.fsdecode(entry.name)}".lstrip("/")
        if entry.mode & 0o170000 == 0o040000:
            yield from _files(layer, child, path)
        elif entry.mode & 0o170000 in (0o100000, 0o120000):
            yield path, child
