"""A small Debian archive, signed with a key of its own, served by `framework.registry`'s server."""

from __future__ import annotations

import functools
import hashlib
import lzma
from dataclasses import dataclass, field
from pathlib import Path

import pysequoia
import zstandard

from framework.registry import Registry
from framework.registry_archives import Item, folder, symlink, tar

COMPRESSIONS = {
    "xz": lzma.compress,
    "zst": lambda data: zstandard.ZstdCompressor().compress(data),
    "gz": lambda data: __import__("gzip").compress(data, mtime=0),
    "": bytes,
}


def ar(*members: tuple[str, bytes]) -> bytes:
    """An ar archive in the common format, as deb(5) has it."""
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts.append(f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(data):<10}`\n".encode())
        parts += [data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


@dataclass
class Deb:
    """A package to be. fields: more control fields; scripts: control members by name."""

    name: str
    items: tuple[Item, ...] = ()
    version: str = "1.0"
    architecture: str = "riscv64"
    fields: dict[str, str] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    compression: str = "xz"

    def control(self) -> str:
        named = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "Nobody <nobody@example.org>",
            "Installed-Size": "1",
            **self.fields,
            "Description": "a test\n of several lines",
        }
        return "".join(f"{key}: {value}\n" for key, value in named.items())

    def data(self) -> bytes:
        """The .deb file."""
        members = [Item("./control", self.control().encode())]
        members += [Item(f"./{n}", text.encode(), mode=0o755) for n, text in self.scripts.items()]
        suffix = f".{self.compression}" if self.compression else ""
        return ar(
            ("debian-binary", b"2.0\n"),
            ("control.tar.gz", COMPRESSIONS["gz"](tar(folder("./"), *members))),
            (f"data.tar{suffix}", COMPRESSIONS[self.compression](tar(folder("./"), *self.items))),
        )


@functools.cache
def archive_key() -> tuple[pysequoia.Tsk, bytes]:
    """A signing key and its certificate, armored; the same for all tests of a process."""
    secret = pysequoia.Tsk.generate("Test archive <archive@example.org>")
    return secret, str(secret.extract_certificate()).encode()


@dataclass
class DebianArchive:
    """Packages of one suite and architecture on a server."""

    registry: Registry
    suite: str = "testing"
    codename: str = "trixie"
    architecture: str = "riscv64"
    extra_release: str = ""
    packages: list[Deb] = field(default_factory=list)

    @property
    def uri(self) -> str:
        return f"http://{self.registry.host}/debian"

    def publish(self, *packages: Deb) -> None:
        """Serves the packages and a signed release of them."""
        self.packages = list(packages)
        stanzas = []
        for package in packages:
            data = package.data()
            name = f"pool/main/{package.name}_{package.version.replace(':', '%3a')}.deb"
            self.registry.put(f"/debian/{name}", data)
            digest = hashlib.sha256(data).hexdigest()
            stanzas.append(
                f"{package.control()}Filename: {name}\nSize: {len(data)}\nSHA256: {digest}\n"
            )
        self.publish_index("\n".join(stanzas).encode())

    def publish_index(self, index: bytes, place: str = "") -> None:
        """Serves a Packages file and a release of it. place: below dists/, the codename unless given."""
        packed = lzma.compress(index)
        digest = hashlib.sha256(packed).hexdigest()
        base = f"/debian/dists/{place or self.codename}"
        where = f"main/binary-{self.architecture}"
        self.registry.put(f"{base}/{where}/by-hash/SHA256/{digest}", packed)
        release = (
            f"Origin: Test\nSuite: {self.suite}\nCodename: {self.codename}\n"
            f"Date: Thu, 01 Jan 2026 00:00:00 UTC\nArchitectures: all {self.architecture}\n"
            f"Components: main\nAcquire-By-Hash: yes\n{self.extra_release}"
            f"SHA256:\n {digest} {len(packed)} {where}/Packages.xz\n"
        )
        self.sign(release, place)

    def sign(self, release: str, place: str = "") -> None:
        """Serves a release, signed."""
        secret, _ = archive_key()
        mode = pysequoia.SignatureMode.CLEAR
        signed = pysequoia.sign(secret.signer(), release.encode(), mode=mode)
        self.registry.put(f"/debian/dists/{place or self.codename}/InRelease", signed)

    @staticmethod
    def write_keyring(path: Path) -> Path:
        """The certificate, as a keyring file."""
        path.write_bytes(archive_key()[1])
        return path


def base_system(*more: Deb) -> list[Deb]:
    """The packages that make the smallest image: base-files, base-passwd, a shell and apt."""
    required = {"Priority": "required", "Essential": "yes"}
    return [
        Deb(
            "base-files",
            (
                folder("./etc"),
                folder("./usr"),
                folder("./usr/bin"),
                folder("./tmp", 0o1777),
                symlink("./bin", "usr/bin"),
                Item("./usr/lib/os-release", b"ID=debian\n"),
                Item("./usr/share/base-files/profile", b"umask 022\n"),
            ),
            fields=required,
        ),
        Deb(
            "base-passwd",
            (
                Item("./usr/share/base-passwd/passwd.master", b"root:*:0:0:root:/root:/bin/bash\n"),
                Item("./usr/share/base-passwd/group.master", b"root:*:0:\nmail:*:8:\n"),
            ),
            fields=required,
        ),
        Deb(
            "dash",
            (folder("./bin"), Item("./bin/dash", b"\x7fELF", mode=0o755)),
            fields={**required, "Depends": "libc6 (>= 2.0)"},
            compression="zst",
        ),
        Deb(
            "libc6",
            (Item("./usr/lib/riscv64-linux-gnu/libc.so.6", b"\x7fELF"),),
            "2.41-1",
            fields={"Multi-Arch": "same"},
            compression="gz",
        ),
        Deb(
            "apt",
            (folder("./etc/apt/sources.list.d"), Item("./usr/bin/apt", mode=0o755)),
            compression="",
        ),
        *more,
    ]
