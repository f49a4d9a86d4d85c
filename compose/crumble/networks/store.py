"""The definitions of named networks, a file each: DATA/networks/NAME.json.

A file is written anew under another name, synced and renamed; writers hold a lock on the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from crumble_common import paths
from crumble_common.directories import sync
from crumble_common.errors import HostError, UsageError
from crumble_common.messages import net

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}")
# What --network means without a definition, or elsewhere.
RESERVED = ("user", "none", "host", "default", "bridge")
_SUBNETS = [f"10.89.{number}.0/24" for number in range(256)]
_SUBNET6 = "fd63:7275:6d62:{:x}::/64"
_OWN6 = ipaddress.IPv6Network(net.NETWORK6)
_MOST_BITS, _FEWEST_BITS = 29, 8
_SUFFIX = ".json"


@dataclass(frozen=True)
class Definition:
    """One network. subnet, subnet6: its addresses. internet: its guests may leave it. leases: addresses of VMs,
    by name; they keep them when they end, as long as there are others.
    """

    name: str
    subnet: str
    subnet6: str
    internet: bool = True
    created: float = 0.0
    leases: dict[str, str] = field(default_factory=dict)

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The subnet."""
        return ipaddress.IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        """The first address."""
        return str(self.network[1])

    @property
    def host(self) -> str:
        """The second one: host.internal."""
        return str(self.network[2])


class NetworkStore:
    """The directory of definitions."""

    def __init__(self) -> None:
        self.path = paths.data_dir() / "networks"

    def names(self) -> list[str]:
        """Of all networks, sorted."""
        if not self.path.is_dir():
            return []
        return sorted(path.name.removesuffix(_SUFFIX) for path in self.path.glob(f"*{_SUFFIX}"))

    def get(self, name: str) -> Definition:
        """UsageError "network.unknown", HostError "network.corrupt"."""
        try:
            text = (self.path / f"{_checked(name)}{_SUFFIX}").read_bytes()
        except FileNotFoundError:
            raise UsageError(
                f"There is no network {name}.",
                code="network.unknown",
                hint=f"`crumble network create {name}` makes it; `crumble network ls` lists them.",
            ) from None
        return _parsed(name, text)

    def create(self, name: str, subnet: str = "", *, internet: bool = True) -> Definition:
        """A new one; raises UsageError when it cannot be."""
        if name in RESERVED:
            raise UsageError(
                f"A network cannot be called {name}.", code="network.name", hint="Choose another."
            )
        _checked(name)
        with self._locked():
            if name in self.names():
                raise UsageError(
                    f"There is a network {name} already.",
                    code="network.exists",
                    hint=f"Use it, choose another name, or `crumble network rm {name}` first.",
                )
            others = [self.get(other) for other in self.names()]
            where = _free(others, subnet)
            made = Definition(name, where, _free6(others), internet, time.time())
            self._write(made)
        return made

    def remove(self, name: str) -> None:
        """UsageError "network.unknown"."""
        with self._locked():
            self.get(name)
            (self.path / f"{name}{_SUFFIX}").unlink()
            sync(self.path)

    def lease(self, name: str, vm: str, alive: frozenset[str]) -> Definition:
        """The definition, in which `vm` has an address now. alive: VMs whose addresses are in use."""
        with self._locked():
            found = self.get(name)
            if vm in found.leases:
                return found
            address = _next(found, alive)
            leases = {who: where for who, where in found.leases.items() if where != address}
            found = replace(found, leases={**leases, vm: address})
            self._write(found)
        return found

    def _write(self, definition: Definition) -> None:
        temporary = self.path / f".{definition.name}.{os.getpid()}"
        try:
            with temporary.open("w") as file:
                json.dump(asdict(definition), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / f"{definition.name}{_SUFFIX}")
            sync(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise HostError(
                f"Cannot write the network {definition.name}: {error.strerror}.",
                code="network.write",
                hint=f"Look at {self.path}.",
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.mkdir(mode=0o700, exist_ok=True)
        held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            for left in self.path.glob(".*"):  # of one that was killed
                left.unlink(missing_ok=True)
            yield
        finally:
            os.close(held)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r:.80} cannot be a network's name.",
            code="network.name",
            hint="Use letters, digits, dots, hyphens and underscores.",
        )
    return name


def _parsed(name: str, text: bytes) -> Definition:
    """What is in a file may be anything."""
    try:
        data: dict[str, Any] = json.loads(text)
        found = Definition(**data)
        leases = {str(vm): ipaddress.IPv4Address(where) for vm, where in found.leases.items()}
        fine = (
            found.name == name
            and _FEWEST_BITS <= found.network.prefixlen <= _MOST_BITS
            and ipaddress.IPv6Network(found.subnet6).prefixlen == 64
            and all(where in found.network for where in leases.values())
            and isinstance(found.internet, bool)
            and isinstance(found.created, int | float)
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise HostError(
            f"The definition of the network {name} is damaged.",
            code="network.corrupt",
            hint=f"Remove {name}{_SUFFIX} below the data directory's networks, and create it anew.",
        )
    return found


def _free(others: list[Definition], wanted: str) -> str:
    taken = [other.network for other in others] + [ipaddress.IPv4Network(net.NETWORK)]
    for text in [wanted] if wanted else _SUBNETS:
        try:
            network = ipaddress.IPv4Network(text)
        except ValueError as error:
            raise _no_subnet(f"{text!r:.80} is no subnet: {error}.") from None
        if not _FEWEST_BITS <= network.prefixlen <= _MOST_BITS:
            raise _no_subnet(f"{text} is not a /{_FEWEST_BITS} to /{_MOST_BITS}.")
        if network.is_loopback or network.is_link_local or network.is_multicast:
            raise _no_subnet(f"{text} has a meaning of its own.")
        if not any(network.overlaps(other) for other in taken):
            return str(network)
        if wanted:
            raise _no_subnet(f"{text} overlaps another network.")
    raise _no_subnet("Every subnet is taken.")


def _no_subnet(what: str) -> UsageError:
    return UsageError(what, code="network.subnet", hint="Give another one with --subnet.")


def _free6(others: list[Definition]) -> str:
    taken = {other.subnet6 for other in others}
    candidates = (str(ipaddress.IPv6Network(_SUBNET6.format(n))) for n in range(1, 0x10000))
    return next(text for text in candidates if text not in taken and text != str(_OWN6))


def _next(definition: Definition, alive: frozenset[str]) -> str:
    """An address that nobody ever had, else one of a VM that is gone."""
    network, taken = definition.network, set(definition.leases.values())
    for number in range(3, min(network.num_addresses - 1, 1 << 16)):
        if (address := str(network[number])) not in taken:
            return address
    for vm, address in definition.leases.items():
        if vm not in alive:
            return address
    raise UsageError(
        f"The network {definition.name} has no address left.",
        code="network.full",
        hint="End a VM on it, or make a larger one with --subnet.",
    )


def mac_of(address: str) -> str:
    """The MAC of a guest: locally administered, and as unique as its address."""
    return bytes((0x06, 0x63, *ipaddress.IPv4Address(address).packed)).hex(":")
