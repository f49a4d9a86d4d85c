"""The way of a kernel into the store: Debian's linux-image packages, taken apart into an image and the
modules a guest needs. `kernels` says where they stay.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from crumble_common import directories
from crumble_common.errors import RemoteError, UsageError
from crumble_common.messages.image import Kernel
from crumble_ocid import bzimage
from crumble_ocid.compression import decompress
from crumble_ocid.debian.deb import DebReader
from crumble_ocid.debian.download import digest_of, download_packages
from crumble_ocid.debian.packages import Package, PackageIndex, open_suite
from crumble_ocid.debian.release import Release
from crumble_ocid.debian.resolve import parse_relations
from crumble_ocid.debian.version import version_key
from crumble_ocid.files import host_errors, write_atomically
from crumble_ocid.images import collect_garbage
from crumble_ocid.kernels import WANTED, WANTED_FILE, kernels_home, stored_kernel, wanted_text
from crumble_ocid.progress import Reporter
from crumble_ocid.store import Store
from crumble_ocid.transfer import Transport

DEFAULT_SUITE = "trixie"
_BOOT = re.compile(r"boot/(vmlinu[xz]|config)-(.+)")
_MODULE = re.compile(r"(?:usr/)?lib/modules/[^/]+/kernel/(?:.*/)?([A-Za-z0-9_-]+)\.ko(?:\.[a-z]+)?")
_MAX_IMAGE = 512 << 20
_MAX_MODULE = 64 << 20
_MAX_CONFIG = 4 << 20


class KernelProvider:
    """Gets kernels into a store and finds them there."""

    def __init__(self, store: Store, transport: Transport) -> None:
        self._store = store
        self._transport = transport

    def get(
        self,
        architecture: str,
        version: str,
        reporter: Reporter,
        *,
        refresh: bool = False,
    ) -> Kernel:
        """The kernel `version` ("" for the default) of an architecture, fetched when it is not here.

        refresh: ask the archive for a newer default. Raises UsageError, RemoteError, HostError.
        """
        home = kernels_home(self._store, architecture, version)
        if not refresh and (kernel := stored_kernel(home, version)) is not None:
            return kernel
        with host_errors("write", home):
            home.mkdir(parents=True, exist_ok=True)
            kernel = self._fetch(home, home.name, version, reporter)
            if not version:
                write_atomically(home / "default", kernel.version.encode())
        return kernel

    def _fetch(self, home: Path, architecture: str, version: str, reporter: Reporter) -> Kernel:
        release, index = open_suite(
            self._store, self._transport, DEFAULT_SUITE, architecture, reporter
        )
        try:
            package = find_kernel(index, architecture, version)
        finally:
            index.close()
        name = package.name.removeprefix("linux-image-")
        if (kernel := stored_kernel(home, name)) is not None:
            return kernel
        self._install(home / name, architecture, release, package, reporter)
        kernel = stored_kernel(home, name)
        assert kernel is not None
        return kernel

    def _install(
        self,
        target: Path,
        architecture: str,
        release: Release,
        package: Package,
        reporter: Reporter,
    ) -> None:
        digest = digest_of(package)
        done = lambda: stored_kernel(target.parent, target.name) is not None  # noqa: E731
        with (
            self._store.work(f"kernel-{package.sha256}", done, lambda _: reporter.check()) as right,
            self._store.lease() as lease,
            self._store.temporary_directory("kernel") as made,
        ):
            if right is None:
                return
            download_packages(
                self._store, lease, self._transport, release, [package], reporter, "the kernel"
            )
            blob = self._store.blob_path(digest)
            step = reporter.step("unpack the kernel", package.size)
            modules = KernelPackage(blob, step.set).extract(made)
            _unpack(made / "image")
            step.finish()
            kernel = Kernel(architecture, target.name, digest, "image", modules)
            write_atomically(made / WANTED_FILE, wanted_text(target.parent.name).encode())
            write_atomically(made / "kernel.json", json.dumps(asdict(kernel)).encode())
            if target.exists():  # incomplete: `stored_kernel` would have given it
                shutil.rmtree(target)
            made.rename(target)
            directories.sync(target.parent)
        collect_garbage(self._store)  # the package: 112 MB of which 31 were wanted


def _unpack(image: Path) -> None:
    """A bzImage becomes what is in it; other images stay."""
    unpacked = image.with_name("vmlinux")
    if bzimage.unpack(image, unpacked):
        unpacked.replace(image)


def find_kernel(index: PackageIndex, architecture: str, version: str) -> Package:
    """The package of a kernel release; "" for the one the architecture's metapackage depends on."""
    name = f"linux-image-{version or architecture}"
    if not version:
        for meta in index.named(name):
            for group in parse_relations(meta.depends):
                if group[0].name.startswith("linux-image-"):
                    name = group[0].name
    found = sorted(index.named(name), key=lambda item: version_key(item.version))
    if not found or name == f"linux-image-{architecture}":
        raise UsageError(
            f"Debian {DEFAULT_SUITE} has no kernel {version or 'image'} for {architecture}.",
            code="kernel.unknown",
            hint="Leave the version away for the newest, or give the path of a kernel.",
        )
    return found[-1]


class KernelPackage:
    """One linux-image package: its kernel image, and modules with what they depend on."""

    def __init__(self, path: Path, at: Callable[[int], None]) -> None:
        self._path = path
        self._at = at
        self._config: dict[str, str] = {}
        self._modules: dict[str, bytes] = {}
        self._have_image = False

    def extract(self, target: Path) -> list[str]:
        """Writes `image` and NAME.ko files; returns the modules' file names, dependencies first.

        Reads no more of the package than it must: a second time only when a module turns out to
        depend on one that came before it.
        """
        self._scan(target, None)
        while missing := self._missing():
            before = len(self._modules)
            self._scan(target, missing)
            if len(self._modules) == before:
                raise RemoteError(
                    f"The kernel package lacks the modules {', '.join(sorted(missing))}.",
                    code="kernel.package",
                    hint="Give a kernel with --kernel, or try another mirror.",
                )
        if not self._have_image:
            raise RemoteError(
                "The kernel package holds no kernel.",
                code="kernel.package",
                hint="Give a kernel with --kernel, or try another mirror.",
            )
        order = dependency_order(self._modules)
        for name in order:
            _write(target / f"{name}.ko", [self._modules[name]])
        return [f"{name}.ko" for name in order]

    def _missing(self) -> set[str]:
        needs = {need for data in self._modules.values() for need in module_needs(data)}
        return (needs | self._wanted()) - self._modules.keys()

    def _scan(self, target: Path, wanted: set[str] | None) -> None:
        """One pass: the image and config (first pass), and `wanted` modules (None: as the config says)."""
        with self._path.open("rb") as file:
            tar = DebReader(file).data()
            for member in tar:
                self._at(file.tell())
                name = member.name.decode("utf-8", "replace").removeprefix("./")
                if member.kind != "0":
                    continue
                if wanted is None and (boot := _BOOT.fullmatch(name)):
                    if boot[1] == "config":
                        self._config = parse_config(tar.read(_MAX_CONFIG))
                    else:
                        _write(target / "image", tar.data())
                        self._have_image = True
                elif module := _MODULE.fullmatch(name):
                    called = module[1].replace("-", "_")
                    if called in (self._wanted() if wanted is None else wanted):
                        data = tar.read(_MAX_MODULE)
                        self._modules[called] = b"".join(decompress([data], _MAX_MODULE))
                needed = self._wanted() if wanted is None else wanted
                if self._have_image and needed <= self._modules.keys():
                    return

    def _wanted(self) -> set[str]:
        """Modules that are neither built in nor missing from this kernel."""
        return {name for name, option in WANTED.items() if self._config.get(option) == "m"}


def parse_config(data: bytes) -> dict[str, str]:
    """A kernel's .config: option → value, for those that are set."""
    lines = data.decode("utf-8", "replace").splitlines()
    return {k: v for k, _, v in (line.partition("=") for line in lines) if k.startswith("CONFIG_")}


def module_needs(data: bytes) -> list[str]:
    """Modules a module depends on, by its own word (modinfo "depends"); raises RemoteError."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
        info = section.data() if section is not None else b""
    except (ELFError, ValueError, OverflowError) as error:
        raise RemoteError(
            f"A kernel module is no valid ELF file ({error}).",
            code="kernel.package",
            hint="Give a kernel with --kernel, or try another mirror.",
        ) from None
    for item in info.split(b"\0"):
        if item.startswith(b"depends="):
            names = item.removeprefix(b"depends=").decode("ascii", "replace").split(",")
            return [name.replace("-", "_") for name in names if name]
    return []


def dependency_order(modules: dict[str, bytes]) -> list[str]:
    """Names such that each comes after those it depends on."""
    order: list[str] = []
    visited: set[str] = set()

    def visit(name: str) -> None:
        if name in visited or name not in modules:
            return
        visited.add(name)
        for need in module_needs(modules[name]):
            visit(need)
        order.append(name)

    for name in sorted(modules):
        visit(name)
    return order


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    size = 0
    with path.open("xb") as file:
        for part in parts:
            size += len(part)
            if size > _MAX_IMAGE:
                raise RemoteError(
                    "The kernel package holds a kernel too large to be one.",
                    hint="Give a kernel with --kernel, or try another mirror.",
                )
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
