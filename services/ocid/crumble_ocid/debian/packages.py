"""A suite's package index, kept in a form that answers at once (SQLite, by the index's digest).

Only the fields resolving and fetching need are kept; each is checked when the index is made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from crumble_common.errors import RemoteError, UsageError
from crumble_ocid.compression import decompress
from crumble_ocid.debian.control import damaged
from crumble_ocid.debian.release import Release, fetch_release, open_release
from crumble_ocid.files import commit
from crumble_ocid.progress import Reporter
from crumble_ocid.store import Store
from crumble_ocid.transfer import Headers, Transport, fetch_blob

if TYPE_CHECKING:
    import httpx

COMPONENT = "main"
_OTHER = ("remote.length", "remote.digest", "remote.status")  # not the index the release names
_MAX_INDEX = 1 << 30  # decompressed; trixie's is 54 MB
_MAX_DEB = 16 << 30
_FIELDS = ("package", "version", "architecture", "essential", "priority", "multi-arch", "filename",
           "size", "installed-size", "sha256", "pre-depends", "depends", "provides", "conflicts",
           "breaks")  # fmt: skip
_FIELD = re.compile(
    rb"^(%s):[ \t]*(.*)$" % b"|".join(name.encode() for name in _FIELDS),
    re.MULTILINE | re.IGNORECASE,
)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"[0-9A-Za-z.+~:-]+")
_FILENAME = re.compile(r"[A-Za-z0-9_.+~%/-]+")
_PROVIDED = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::\S+)?\s*(?:\(\s*=\s*([^)\s]+)\s*\))?")
_SCHEMA = """
create table packages (name text, version text, architecture text, essential int, priority text,
    multi_arch text, filename text, size int, installed int, sha256 text, pre_depends text,
    depends text, provides text, conflicts text, breaks text);
create table provides (name text, version text, package int);
"""
_INDEXES = """
create index by_name on packages (name);
create index by_provided on provides (name);
create index by_need on packages (essential, priority);
"""
_INSERT = "insert into packages values (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"


@dataclass(frozen=True, slots=True)
class Package:
    """A binary package in the index; sizes in bytes, relations as the archive writes them."""

    name: str
    version: str
    architecture: str
    essential: bool
    priority: str
    multi_arch: str
    filename: str
    size: int
    installed: int
    sha256: str
    pre_depends: str
    depends: str
    provides: str
    conflicts: str
    breaks: str


class PackageIndex:
    """The packages of one suite and architecture."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def named(self, name: str) -> list[Package]:
        """Every version of a package."""
        return self._select("where name = ?", name)

    def providers(self, name: str) -> list[tuple[Package, str]]:
        """Packages that provide a virtual one, each with the version it provides it in ("": none)."""
        query = (
            "select provides.version, packages.* from provides join packages "
            "on packages.rowid = provides.package where provides.name = ?"
        )
        return [(_package(row[1:]), row[0]) for row in self._database.execute(query, (name,))]

    def base(self) -> list[Package]:
        """What every Debian system has: essential and required packages (as debootstrap's minbase)."""
        return self._select("where essential or priority = 'required'")

    def similar(self, name: str) -> list[str]:
        """A few names that begin like this one."""
        query = "select distinct name from packages where name glob ? order by length(name) limit 4"
        rows = self._database.execute(query, (f"{re.sub(r'[^a-z0-9+.-]', '', name)[:4]}*",))
        return [row[0] for row in rows]

    def _select(self, where: str, *values: str) -> list[Package]:
        query = f"select * from packages {where}"  # noqa: S608  `where` is one of the texts above
        rows = self._database.execute(query, values)
        return [_package(row) for row in rows]


def open_suite(
    store: Store, transport: Transport, suite: str, architecture: str, reporter: Reporter
) -> tuple[Release, PackageIndex]:
    """A suite's release and the index it names; raises RemoteError, UsageError, HostError.

    A mirror that is being updated, or a cache before it, may have a new release file and an old index.
    The folder of the suite's other name ("stable" for "trixie") is then often still of one piece.
    """
    release = open_release(transport, suite, reporter)
    try:
        return release, open_packages(store, transport, release, architecture, reporter)
    except RemoteError as error:
        if error.code not in _OTHER:
            raise
        failure = error
    for name in release.names:
        if name == release.place:
            continue
        with contextlib.suppress(RemoteError):
            other = fetch_release(transport, release.source, name, reporter)
            if other is not None and other.codename == release.codename:
                other = dataclasses.replace(other, suite=suite)
                return other, open_packages(store, transport, other, architecture, reporter)
    raise failure


def open_packages(
    store: Store, transport: Transport, release: Release, architecture: str, reporter: Reporter
) -> PackageIndex:
    """The index of a release, fetched and made when it is not there; raises RemoteError, UsageError."""
    if architecture not in release.architectures:
        raise UsageError(
            f"Debian {release.suite} has no packages for {architecture}; "
            f"it has them for {', '.join(release.architectures)}.",
            code="debian.architecture",
            hint="Choose another suite.",
        )
    name = f"{COMPONENT}/binary-{architecture}/Packages.xz"
    if name not in release.files:
        raise damaged(f"release of {release.suite} lists no {name}")
    sha256 = release.files[name][0]
    folder = store.root / "debian"
    folder.mkdir(exist_ok=True)
    path = folder / f"{release.suite}-{architecture}-{sha256[:32]}.sqlite"
    with (
        store.work(f"packages-{sha256}", path.exists, lambda _: reporter.check()) as right,
        store.lease() as lease,
    ):
        if right is not None:
            lease.add(f"sha256:{sha256}")
            _fetch(store, transport, release, name, reporter)
            blob = store.blob_path(f"sha256:{sha256}")
            _make(store, blob, path)
            blob.unlink(missing_ok=True)
            _remove_older(path, f"{release.suite}-{architecture}-")
    return PackageIndex(path)


def _fetch(
    store: Store, transport: Transport, release: Release, name: str, reporter: Reporter
) -> None:
    """Downloads an index by its hash (which a changing archive keeps for a while), else by its name."""
    sha256, size = release.files[name]
    by_hash = f"{name.rpartition('/')[0]}/by-hash/SHA256/{sha256}"
    names = [by_hash, name] if release.by_hash else [name]

    @contextlib.contextmanager
    def open_from(headers: Headers) -> Iterator[httpx.Response]:
        for place in names:
            with transport.open(f"{release.base}/{place}", headers) as response:
                if response.status_code != 404 or place == name:
                    yield response
                    return

    step = reporter.step(f"list packages of {release.suite}", size)
    try:
        fetch_blob(store, f"sha256:{sha256}", size, open_from, step)
    except RemoteError as error:
        if error.code not in _OTHER:
            raise
        raise RemoteError(
            f"The Debian mirror's list of packages is not the one its release of {release.suite} "
            f"names ({error.message.rstrip('.')}).",
            code=error.code,
            hint="It may be being updated: try again later, or name another mirror in "
            "CRUMBLE_DEBIAN_MIRROR.",
        ) from error


def _make(store: Store, blob: Path, path: Path) -> None:
    with store.temporary("packages") as (made, temporary):
        database = sqlite3.connect(temporary)
        with contextlib.closing(database), blob.open("rb") as file:
            database.executescript(
                "pragma journal_mode = off; pragma synchronous = off; pragma temp_store = memory;"
                + _SCHEMA
            )
            chunks = iter(lambda: file.read(1 << 18), b"")
            _insert(database, parse_packages(decompress(chunks, _MAX_INDEX)))
            database.executescript(_INDEXES)
            database.commit()
        commit(made, temporary, path)


def _insert(database: sqlite3.Connection, packages: Iterable[Package]) -> None:
    rows, provided = [], []
    for number, package in enumerate(packages, 1):
        rows.append(tuple(getattr(package, name) for name in Package.__slots__))
        for name, version in parse_provides(package.provides):
            provided.append((name, version, number))
    database.executemany(_INSERT, rows)
    database.executemany("insert into provides values (?, ?, ?)", provided)


def parse_packages(chunks: Iterable[bytes]) -> Iterator[Package]:
    """Packages of a Packages file; raises RemoteError for one with a missing or wrong field."""
    rest = b""
    for chunk in chunks:
        stanzas = (rest + chunk).split(b"\n\n")
        rest = stanzas.pop()
        yield from map(parse_package, filter(None, stanzas))
    if rest.strip():
        yield parse_package(rest)


def parse_package(stanza: bytes) -> Package:
    """One stanza. The archive folds none of the fields wanted, so a line each is enough."""
    found = {key.decode().lower(): value for key, value in _FIELD.findall(stanza)}
    text = {name: found.get(name, b"").decode("utf-8", "replace").strip() for name in _FIELDS}
    name, version, filename = text["package"], text["version"], text["filename"]
    size, sha256 = text["size"], text["sha256"]
    bad = (
        not _NAME.fullmatch(name)
        or not _VERSION.fullmatch(version)
        or not _FILENAME.fullmatch(filename)
        or ".." in filename.split("/")
        or filename.startswith("/")
        or not (size.isdecimal() and len(size) < 20 and int(size) <= _MAX_DEB)
        or not re.fullmatch(r"[0-9a-f]{64}", sha256)
    )
    if bad:
        raise damaged(f"package index has a bad entry for {name[:60]!r}")
    installed = text["installed-size"]
    return Package(
        name,
        version,
        text["architecture"],
        text["essential"].lower() == "yes",
        text["priority"],
        text["multi-arch"],
        filename,
        int(size),
        int(installed) << 10 if installed.isdecimal() and len(installed) < 12 else 0,
        sha256,
        text["pre-depends"],
        text["depends"],
        text["provides"],
        text["conflicts"],
        text["breaks"],
    )


def parse_provides(text: str) -> list[tuple[str, str]]:
    """(name, version or "") of each virtual package; what cannot be read is passed over."""
    found = (_PROVIDED.fullmatch(item.strip()) for item in text.split(","))
    return [(item[1], item[2] or "") for item in found if item]


def _package(row: tuple[Any, ...]) -> Package:
    return Package(*row)


def _remove_older(path: Path, prefix: str) -> None:
    for other in path.parent.glob(f"{prefix}*.sqlite"):
        if other != path:
            other.unlink(missing_ok=True)
