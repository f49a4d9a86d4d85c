"""Who a process runs as: "user", "uid", "user:group", "uid:gid" against the guest's own files.

The rules are those of runc's `GetExecUser` (opencontainers/runc, libcontainer/user), which Docker and
podman follow. The files come from the guest: lines that make no sense are skipped, as libc does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from crumble_common.errors import UsageError

PASSWD, GROUP = b"/etc/passwd", b"/etc/group"
_MAX_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Identity:
    """What a process is given. name: the user's, "" when it has none."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(spec: str, passwd: bytes, group: bytes) -> Identity:
    """The identity `spec` names ("" is root); raises UsageError "exec.user" when there is none."""
    user_part, _, group_part = spec.partition(":")
    user = _find_user(user_part, passwd)
    gid, groups = user.gid, tuple[int, ...]()
    if group_part:
        gid = _find_group(group_part, group)
    elif user.name:
        groups = tuple(item.gid for item in _groups(group) if user.name in item.members)
    return Identity(user.uid, gid, groups, user.home or "/", user.name)


def _find_user(wanted: str, passwd: bytes) -> _User:
    number = 0 if wanted == "" else _number(wanted)
    for user in _users(passwd):
        if user.name == wanted or user.uid == number:
            return user
    if number is None:
        raise _unknown("user", wanted, "/etc/passwd")
    return _User("", number, 0, "/")


def _find_group(wanted: str, group: bytes) -> int:
    number = _number(wanted)
    for item in _groups(group):
        if item.name == wanted or item.gid == number:
            return item.gid
    if number is None:
        raise _unknown("group", wanted, "/etc/group")
    return number


def _unknown(what: str, name: str, file: str) -> UsageError:
    return UsageError(
        f"There is no {what} {name!r} in the guest.",
        code="exec.user",
        hint=f"Use one that is in its {file}, or a number from 0 to {_MAX_ID}.",
    )


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    return int(text) if int(text) <= _MAX_ID else None


def _rows(data: bytes, columns: int) -> Iterator[list[str]]:
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        row = line.strip().split(":")
        if len(row) >= columns and row[0]:
            yield row


def _users(passwd: bytes) -> Iterator[_User]:
    for name, _, uid, gid, _, home, *_ in _rows(passwd, 6):
        numbers = _number(uid), _number(gid)
        if numbers[0] is not None and numbers[1] is not None:
            yield _User(name, numbers[0], numbers[1], home)


def _groups(group: bytes) -> Iterator[_Group]:
    for name, _, gid, members, *_ in _rows(group, 4):
        number = _number(gid)
        if number is not None:
            yield _Group(name, number, tuple(filter(None, members.split(","))))
