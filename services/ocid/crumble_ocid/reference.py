"""Image references: what a person writes to name an image.

Registry references follow the grammar of the OCI distribution project's `reference` package:
[domain[:port]/]path[:tag][@digest]. Without a domain it is Docker Hub's, without tag and digest the
tag is "latest". Others are told by a prefix: "deb:SUITE[/PKG,…]", "oci:DIR[:tag]",
"docker-archive:FILE[:ref]".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from crumble_common.errors import UsageError
from crumble_ocid.digest import is_digest

DOCKER_HUB = "docker.io"
_MAX_NAME = 255
_MAX_TEXT = 4096 + 512  # a path and a tag

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_PATH_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SUITE = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
_MAX_PACKAGES = 256
_FORMS = "Write NAME[:TAG][@DIGEST], deb:SUITE[/PKG,...], oci:DIR or docker-archive:FILE."


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry. At least one of tag and digest is set."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.domain}/{self.path}{tag}{digest}"

    @property
    def selector(self) -> str:
        """What names the manifest in the registry: the digest, else the tag."""
        return self.digest or self.tag


@dataclass(frozen=True, slots=True)
class DebianReference:
    """An image made of packages of a Debian suite; packages sorted, none twice."""

    suite: str
    packages: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"deb:{self.suite}" + (f"/{','.join(self.packages)}" if self.packages else "")


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An image in an OCI layout directory; tag "" when it holds only one."""

    path: Path
    tag: str = ""

    def __str__(self) -> str:
        return f"oci:{self.path}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class ArchiveReference:
    """An image in a docker-archive file; name "" when it holds only one."""

    path: Path
    name: str = ""

    def __str__(self) -> str:
        return f"docker-archive:{self.path}" + (f":{self.name}" if self.name else "")


Reference = RegistryReference | DebianReference | LayoutReference | ArchiveReference


def parse_reference(text: str, base: Path | None = None) -> Reference:
    """The reference a text names; raises UsageError "image.reference".

    base: the directory relative paths start from; without one a relative path is refused.
    """
    if len(text) > _MAX_TEXT or "\0" in text:
        _refuse(text, "is too long to name an image.")
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "deb":
        return _parse_debian(text, rest)
    if colon and scheme == "oci":
        path, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            path, tag = rest, ""
        return LayoutReference(_parse_path(text, path, base), _check_tag(text, tag))
    if colon and scheme == "docker-archive":
        path, _, name = rest.partition(":")
        return ArchiveReference(_parse_path(text, path, base), _archive_name(name))
    return parse_registry_reference(text)


def parse_registry_reference(text: str) -> RegistryReference:
    """[domain[:port]/]path[:tag][@digest]; raises UsageError "image.reference"."""
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        _refuse(text, "has a digest that is not sha256:… or sha512:….")
    first, slash, remainder = rest.partition("/")
    if slash and (set(first) & set(".:[") or first == "localhost" or first != first.lower()):
        domain, name = first, remainder
    else:
        domain, name = DOCKER_HUB, rest
    name, _, tag = name.partition(":")
    if domain in (DOCKER_HUB, f"index.{DOCKER_HUB}"):
        domain = DOCKER_HUB
        name = name if "/" in name else f"library/{name}"
    if not _DOMAIN.fullmatch(domain) or _port(domain) > 65535:
        _refuse(text, "does not begin with a registry's name.")
    if name != name.lower():
        _refuse(text, "has capital letters in the image's name; they must be small.")
    if not _PATH.fullmatch(name) or len(domain) + len(name) > _MAX_NAME:
        _refuse(text, "is not the name of an image.")
    if rest.endswith(":"):
        _refuse(text, "ends in a colon but names no tag.")
    tag = _check_tag(text, tag) or ("" if digest else "latest")
    return RegistryReference(domain, name, tag, digest)


def _parse_debian(text: str, rest: str) -> DebianReference:
    suite, slash, listed = rest.partition("/")
    packages = listed.split(",") if slash else []
    if not _SUITE.fullmatch(suite):
        _refuse(text, "does not name a Debian suite.", "Write deb:SUITE, for example deb:trixie.")
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            _refuse(text, f"names {package!r}, which cannot be a package.")
    if len(packages) > _MAX_PACKAGES:
        _refuse(text, f"names more than {_MAX_PACKAGES} packages.")
    return DebianReference(suite, tuple(sorted(set(packages))))


def _parse_path(text: str, path: str, base: Path | None) -> Path:
    if not path:
        _refuse(text, "names no file or directory.")
    found = Path(path) if base is None else base / path
    if not found.is_absolute():
        _refuse(text, "has a relative path.", "Give the whole path, from the root.")
    return found


def _archive_name(name: str) -> str:
    """The normal form of a name in a docker-archive ("@0" picks by place)."""
    if not name or name.startswith("@"):
        return name
    return str(parse_registry_reference(name))


def _check_tag(text: str, tag: str) -> str:
    if tag and not _TAG.fullmatch(tag):
        _refuse(text, "has a tag that is none (letters, digits, '_', '.', '-', at most 128).")
    return tag


def _port(domain: str) -> int:
    _, colon, port = domain.rpartition(":")
    return int(port) if colon and port.isdigit() else 0


def _refuse(text: str, why: str, hint: str = _FORMS) -> NoReturn:
    raise UsageError(f"{text[:200]!r} {why}", code="image.reference", hint=hint)
