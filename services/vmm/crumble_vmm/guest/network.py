"""The guest's network interface, as the kernel's command line says. In the dialect of crumble_ir.

crumble.network=MAC,ADDRESS/BITS,GATEWAY gives eth0 its IPv4 address and default route. IPv6 configures itself
from the router's advertisements; nobody else may use an address that this MAC makes, so nothing waits for duplicates.
A guest that went on from a snapshot is told by SETUP what it is from now on, and begins anew.
"""

# mypy: ignore-errors

from __future__ import annotations

from crumble_ir import linux
from crumble_ir.dialect import (
    array,
    format_into,
    i16,
    i64,
    ptr,
    sizeof,
    static,
    struct,
    u8,
    u16,
    u32,
    u64,
)
from crumble_ir.runtime import memory
from crumble_vmm.guest import protocol, state

SLASH, COMMA, DOT, ZERO = b"/"[0], b","[0], b"."[0], b"0"[0]
SPACE, LETTER = b" "[0], b"a"[0]
HARDWARE_AT = 18  # of struct ifreq: sa_data
ADDRESS_AT = 12  # of what the command line says
IPV6 = b"/proc/sys/net/ipv6/conf/eth0/"


@struct
class Address:
    family: u16
    port: u16
    address: u32
    zero: u64


@struct
class AddressRequest:
    name: array[u8, 16]
    address: Address
    rest: u64


@struct
class Route:
    pad1: u64
    destination: Address
    gateway: Address
    mask: Address
    flags: u16
    pad2: i16
    pad3: u32
    pad4: u64
    tos: u8
    klass: u8
    pad5: array[i16, 3]
    metric: i16
    device: ptr[u8]
    mtu: u64
    window: u64
    irtt: u16


@struct
class FlagsRequest:
    name: array[u8, 16]
    flags: i16
    rest: array[u8, 22]


_known = static(array[u8, protocol.MAX_NETWORK + 1])
_text = static(ptr[u8])
_path = static(array[u8, 96])


def configure(text: ptr[u8]) -> None:
    """Brings up eth0 as the command line says, up to a space."""
    size: i64 = 0
    while text[size] > SPACE and size < protocol.MAX_NETWORK:
        size += 1
    _keep(text, size)
    _write(b"accept_dad", b"0")
    _write(b"router_solicitation_delay", b"0")
    _apply(False)


def change(text: ptr[u8], size: i64) -> None:
    """The addresses are to be these. Nothing happens when they are, or when there is no network."""
    if (
        size < ADDRESS_AT
        or size > protocol.MAX_NETWORK
        or _known[0] == 0
        or _is_known(text, size, 0)
    ):
        return
    stays = _is_known(text, size, ADDRESS_AT)
    _keep(text, size)
    if stays:
        _apply_hardware()
    else:
        _apply(True)


def _is_known(text: ptr[u8], size: i64, first: i64) -> bool:
    for index in range(first, size):
        if _known[index] != text[index]:
            return False
    return _known[size] == 0


def _keep(text: ptr[u8], size: i64) -> None:
    memory.copy(_known, text, size)
    _known[size] = 0


def _apply_hardware() -> None:
    """Only the MAC is another: addresses and routes stay, and what its owner has added to them."""
    fd = linux.socket(linux.AF_INET, linux.SOCK_DGRAM | linux.SOCK_CLOEXEC, 0)
    if fd >= 0:
        _set_text(_known)
        _set_hardware(fd)
        linux.close(fd)


def _set_hardware(fd: i64) -> None:
    """What the text says next."""
    request: AddressRequest
    memory.clear(ptr[u8](request), sizeof(AddressRequest))
    memory.copy(request.name, b"eth0", 4)
    request.address.family = linux.ARPHRD_ETHER
    for index in range(6):
        ptr[u8](request)[HARDWARE_AT + index] = _hex() * 16 + _hex()
    linux.ioctl(fd, linux.SIOCSIFHWADDR, request)


def _apply(changed: bool) -> None:
    fd = linux.socket(linux.AF_INET, linux.SOCK_DGRAM | linux.SOCK_CLOEXEC, 0)
    if fd < 0:
        return
    _set_text(_known)
    if changed:
        _up(fd, False)
        _set_hardware(fd)
    else:
        _set_text(_known + ADDRESS_AT)
    _skip(COMMA)
    address = _number4()
    bits = _after(SLASH)
    _skip(COMMA)
    gateway = _number4()
    if _set(fd, linux.SIOCSIFADDR, address) and _set(fd, linux.SIOCSIFNETMASK, _mask(bits)):
        _up(fd, True)
        _route(fd, gateway)
    linux.close(fd)


def _set_text(text: ptr[u8]) -> None:
    global _text
    _text = text


def _hex() -> u8:
    digit = _text[0]
    _set_text(_text + 1)
    if digit >= LETTER:
        return digit - LETTER + 10
    return digit - ZERO


def _decimal() -> u32:
    value: u32 = 0
    while _text[0] >= ZERO and _text[0] <= ZERO + 9:
        value = value * 10 + u32(_text[0] - ZERO)
        _set_text(_text + 1)
    return value


def _skip(character: u8) -> None:
    if _text[0] == character:
        _set_text(_text + 1)


def _after(character: u8) -> u32:
    _skip(character)
    return _decimal()


def _number4() -> u32:
    """A dotted address, as it lies in memory in network order."""
    value = _decimal()
    for index in range(1, 4):
        value = value | _after(DOT) << u32(index * 8)
    return value


def _mask(bits: u32) -> u32:
    """The netmask of so many bits, in network order."""
    value: u32 = 0
    for index in range(min(bits, u32(32))):
        value = value | u32(0x80 >> (index & 7)) << u32(index & 0x18)
    return value


def _fill(target: ptr[Address], address: u32) -> None:
    target.family = linux.AF_INET
    target.port = 0
    target.address = address
    target.zero = 0


def _set(fd: i64, request: i64, address: u32) -> bool:
    data: AddressRequest
    memory.clear(ptr[u8](data), sizeof(AddressRequest))
    memory.copy(data.name, b"eth0", 4)
    _fill(data.address, address)
    return linux.ioctl(fd, request, data) == 0


def _up(fd: i64, up: bool) -> None:
    """Down, the interface loses its IPv6 addresses and all routes; up, it asks for a router."""
    request: FlagsRequest
    memory.clear(ptr[u8](request), sizeof(FlagsRequest))
    memory.copy(request.name, b"eth0", 4)
    if linux.ioctl(fd, linux.SIOCGIFFLAGS, request) != 0:
        return
    if up:
        request.flags = request.flags | linux.IFF_UP
    else:
        request.flags = request.flags & ~linux.IFF_UP
    linux.ioctl(fd, linux.SIOCSIFFLAGS, request)


def _route(fd: i64, gateway: u32) -> None:
    route: Route
    memory.clear(ptr[u8](route), sizeof(Route))
    _fill(route.destination, 0)
    _fill(route.mask, 0)
    _fill(route.gateway, gateway)
    route.flags = linux.RTF_UP | linux.RTF_GATEWAY
    linux.ioctl(fd, linux.SIOCADDRT, route)


def _write(name: ptr[u8], value: ptr[u8]) -> None:
    format_into(_path, f"{IPV6}{name:s}")
    fd = linux.openat(linux.AT_FDCWD, _path, linux.O_WRONLY | linux.O_CLOEXEC, 0)
    if state.error_of(fd) == 0:
        linux.write(fd, value, memory.length(value))
        linux.close(fd)
