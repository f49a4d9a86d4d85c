"""What a capture knows of a share, checked: {target, directory, next, devices, nodes}.

nodes: [nodeid, parent's nodeid (0: there is no way to it), name, lookups, mode, device, inode, birth].
"""

from __future__ import annotations

from typing import Any, NamedTuple

SHARE_BASE = 1 << 62  # nodeids of shares: SHARE_BASE | number of the share << 48 | counter
_COUNTER = 48
_U64 = (1 << 64) - 1

Key = tuple[int, int, int]
"""Device, inode, time of birth."""


class ShareRow(NamedTuple):
    """One node."""

    nodeid: int
    parent: int
    name: bytes
    lookups: int
    mode: int
    key: Key


class ShareState(NamedTuple):
    """A share; its root is among the nodes."""

    target: str
    directory: bool
    next: int
    devices: list[int]
    nodes: list[ShareRow]


def share_number(nodeid: int) -> int:
    """Which share a nodeid is of."""
    return nodeid >> _COUNTER & 0x3FFF


def parse_share(packed: Any, number: int) -> ShareState:
    """The state of share `number`; raises ValueError when it makes no sense."""
    try:
        target, directory, following = packed["target"], packed["directory"], packed["next"]
        devices = [_number(device) for device in packed["devices"]]
        rows = [_row(row, number) for row in packed["nodes"]]
    except (TypeError, KeyError) as error:
        raise ValueError(f"a share is described wrongly ({error})") from None
    if not isinstance(target, str) or not isinstance(directory, bool):
        raise ValueError("a share is described wrongly")
    if share_number(_number(following)) != number or following >> 62 != 1:
        raise ValueError("a share's numbers are another's")
    if len({row.nodeid for row in rows}) != len(rows) or len(set(devices)) != len(devices):
        raise ValueError("two nodes of a share have one number")
    _check_ways(rows)
    return ShareState(target, directory, following, devices, rows)


def _row(row: Any, number: int) -> ShareRow:
    nodeid, parent, name, lookups, mode, device, inode, birth = row
    for value in (nodeid, parent, lookups, mode, device, inode, birth):
        _number(value)
    is_root = nodeid == SHARE_BASE | number << _COUNTER
    if nodeid >> 62 != 1 or share_number(nodeid) != number or mode >> 16:
        raise ValueError("a node of a share has a number that is none")
    if not isinstance(name, bytes) or len(name) > 255 or b"/" in name or b"\0" in name:
        raise ValueError("a name makes no sense")
    if name in (b".", b"..") or (parent and not is_root and not name):
        raise ValueError("a name makes no sense")
    return ShareRow(nodeid, parent, name, lookups, mode, (device, inode, birth))


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _U64:
        raise ValueError("a number is out of range")
    return value


def _check_ways(rows: list[ShareRow]) -> None:
    """ValueError when parents form a loop."""
    parents = {row.nodeid: row.parent for row in rows}
    known = {0}
    for row in rows:
        at, way = row.nodeid, set()
        while at not in known:
            if at in way:
                raise ValueError("directories of a share form a loop")
            way.add(at)
            at = parents.get(at, 0)
        known |= way
