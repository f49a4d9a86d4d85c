"""A snapshot's manifest: what it is, what belongs to it, and whether it can be trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from crumble_common import wire
from crumble_common.errors import CrumbleError, GuestError, UsageError
from crumble_common.memory_base import MAX_LAYERS, MAX_RUNS
from crumble_common.messages.image import ImageConfig

FORMAT = 2
ARCHITECTURES, HYPERVISORS = ("riscv64", "amd64", "arm64"), ("soft", "kvm")
PAGE = 4096
CHUNK = 1 << 20
SUM = 32
MAX_MANIFEST = 1 << 20
MAX_STATE = 32 << 20
MAX_MEMORY = 1 << 40
MAX_PARENTS = MAX_LAYERS - 1
MAX_PAGES = MAX_RUNS * 8

MEMORY, SUMS, STATE = "memory", "memory.sums", "state.msgpack"
INDEX, CONTENTS, MANIFEST = "layer.index", "layer.contents", "manifest.json"
PAGES = "memory.pages"
_FILE = re.compile(r"(parent-\d\.)?memory(\.sums|\.pages)?|state\.msgpack|"
                   r"(layer|image-\d{1,3})\.(index|contents)")  # fmt: skip
_LAYER = re.compile(r"[0-9a-zA-Z:_-]{1,128}")
_HEX = re.compile(r"[0-9a-f]{64}")
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")


@dataclass(frozen=True)
class StoredFile:
    """size: bytes. sha256: hex; "" for a memory, which its sums are for."""

    size: int
    sha256: str = ""


@dataclass(frozen=True)
class SavedImage:
    """The image the VM was made of. layers: names in the image store, lowest first."""

    reference: str
    digest: str
    id: str
    config: ImageConfig
    layers: list[str]


@dataclass(frozen=True)
class Manifest:
    """memory: bytes. network: it has a network device, or "none". key: what a boot snapshot was made of, for people.

    parent: the name that the one had which it builds on, "" for a whole one; parent_digest: its `digest`.
    """

    kind: str
    name: str
    created: float
    cpus: int
    memory: int
    hostname: str
    image: SavedImage
    files: dict[str, StoredFile]
    key: dict[str, str] = field(default_factory=dict)
    parent: str = ""
    parent_digest: str = ""
    shares: list[str] = field(default_factory=list)
    cmdline: str = ""
    network: str = "none"
    architecture: str = "riscv64"
    hypervisor: str = "soft"
    transport: Literal["mmio", "pci"] = "mmio"
    watchdog: bool = False
    irqchip: Literal["split", "kernel"] = "split"
    format: int = FORMAT
    crumble: str = ""

    @property
    def changed(self) -> bool:
        """The guest had written something."""
        return INDEX in self.files

    @property
    def memories(self) -> list[str]:
        """The files that its memory is in, each over the one before."""
        return [
            *(name for name in map(parent_file, range(MAX_PARENTS)) if name in self.files),
            MEMORY,
        ]

    @property
    def digest(self) -> str:
        """Of all its memory, parents' included."""
        return _chained(self, self.memories)


def parent_file(number: int, suffix: str = "") -> str:
    """A memory file that others build on, the lowest is 0; or with a suffix what goes with it."""
    return f"parent-{number}.{MEMORY}{suffix}"


def _chained(manifest: Manifest, memories: list[str]) -> str:
    digest = ""
    for name in memories:
        parts = [manifest.files.get(name + suffix) for suffix in (".pages", ".sums")]
        text = " ".join((digest, *(part.sha256 if part else "" for part in parts)))
        digest = hashlib.sha256(text.encode()).hexdigest()
    return digest


def corrupt(name: str, what: str) -> GuestError:
    """A snapshot whose bytes are not those that were written."""
    return GuestError(
        f"The snapshot {name} is damaged: {what}.",
        code="snapshot.corrupt",
        hint=f"Remove it with `crumble snapshot rm {name}`.",
    )


def foreign(name: str, what: str) -> UsageError:
    """One that another Crumble could use."""
    return UsageError(f"The snapshot {name} cannot be used here: {what}.", code="snapshot.foreign")


def encode(manifest: Manifest) -> bytes:
    """The file, with its own checksum."""
    values = plain(manifest)
    return json.dumps({**values, "checksum": _checksum(values)}, indent=1).encode()


def plain(manifest: Manifest) -> dict[str, Any]:
    """As plain values."""
    return dataclasses.asdict(manifest)


def decode(data: bytes, name: str) -> Manifest:
    """Parses and checks a manifest; GuestError "snapshot.corrupt", UsageError "snapshot.foreign"."""
    try:
        values = json.loads(data) if len(data) <= MAX_MANIFEST else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise corrupt(name, "its manifest is not one")
    _check_origin(values, name)
    if values.pop("checksum", "") != _checksum(values):
        raise corrupt(name, "its manifest was changed")
    try:
        manifest = wire.validate(Manifest, values, "manifest")
    except (wire.WireError, CrumbleError, RecursionError) as error:
        raise corrupt(name, str(error)) from None
    if problem := _problem(manifest):
        raise corrupt(name, problem)
    return manifest


def _check_origin(values: dict[str, Any], name: str) -> None:
    """Before the checksum: what another version writes may be summed in another way."""
    version = values.get("format")
    if isinstance(version, int) and version != FORMAT:
        raise foreign(name, f"it has format {version}, and this Crumble knows {FORMAT}")
    for key, ours in (("architecture", ARCHITECTURES), ("hypervisor", HYPERVISORS)):
        theirs = values.get(key)
        if isinstance(theirs, str) and theirs not in ours:
            raise foreign(name, f"its {key} is {theirs[:40]!r}, not {' or '.join(ours)}")


def _problem(manifest: Manifest) -> str:
    """What is impossible about it; "" when nothing is."""
    files, memory = manifest.files, manifest.memory
    if manifest.kind not in ("boot", "user") or not NAME.fullmatch(manifest.name):
        return "its kind or name is not one"
    if not 0 < memory <= MAX_MEMORY or memory % PAGE or not 1 <= manifest.cpus <= 1024:
        return "its memory or CPUs cannot be"
    if not {MEMORY, SUMS, STATE} <= files.keys() or (INDEX in files) != (CONTENTS in files):
        return "files are missing in its manifest"
    for name, file in files.items():
        if not _FILE.fullmatch(name) or file.size < 0:
            return f"{name[:40]!r} cannot be a file of it"
        if not name.endswith(MEMORY) and not _HEX.fullmatch(file.sha256):
            return f"{name} has no checksum"
    if problem := _chain_problem(manifest):
        return problem
    if files[STATE].size > MAX_STATE:
        return "its state is too large"
    layers = manifest.image.layers
    if len(layers) > 512 or not all(_LAYER.fullmatch(layer) for layer in layers):
        return "its image's layers cannot be"
    return ""


def _chain_problem(manifest: Manifest) -> str:
    """What is wrong with its memory and that of those it builds on. A chain cannot be a circle: its digests
    would have to contain themselves.
    """
    files, memories = manifest.files, manifest.memories
    if f"parent-{MAX_PARENTS}.{MEMORY}" in files:
        return f"it builds on more than {MAX_PARENTS} others"
    if memories[:-1] != [parent_file(number) for number in range(len(memories) - 1)]:
        return "one that it builds on is missing"
    for number, name in enumerate(memories):
        sums, pages = files.get(f"{name}.sums"), files.get(f"{name}.pages")
        if (
            files[name].size != manifest.memory
            or not sums
            or sums.size != sums_size(manifest.memory)
        ):
            return "its memory has another size"
        if (pages is not None) != (number > 0) or (pages and pages.size > MAX_PAGES):
            return "what it has of its memory is not said"
    if bool(manifest.parent) != (len(memories) > 1):
        return "it is not said what it builds on"
    if manifest.parent and manifest.parent_digest != _chained(manifest, memories[:-1]):
        return f"what it builds on is not the {manifest.parent[:80]!r} that it names"
    return ""


def sums_size(memory: int) -> int:
    """Bytes of memory.sums."""
    return -(-memory // CHUNK) * SUM


def _checksum(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
