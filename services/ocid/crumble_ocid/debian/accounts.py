"""Users and groups of a new system: base-passwd's masters, sysusers.d(5) files, and apt's own user."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field

from crumble_ocid.debian.tree import Tree

_SHADOW_GID = 42
_NOGROUP = 65534
_FIRST_DYNAMIC = 999  # sysusers.d gives numbers downwards from here
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_NOLOGIN = "/usr/sbin/nologin"


@dataclass
class User:
    """A line of passwd(5)."""

    name: str
    uid: int
    gid: int
    gecos: str = ""
    home: str = "/nonexistent"
    shell: str = _NOLOGIN


@dataclass
class Accounts:
    """All users and groups; members: group → user names."""

    users: dict[str, User] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)

    def add_user(self, user: User) -> None:
        """Adds a user unless there is one of this name."""
        self.users.setdefault(user.name, user)

    def free_number(self) -> int:
        """The highest number below 1000 that is neither a user's nor a group's."""
        used = {user.uid for user in self.users.values()} | set(self.groups.values())
        return next(number for number in range(_FIRST_DYNAMIC, 0, -1) if number not in used)


def install_accounts(tree: Tree, day: int) -> None:
    """Writes passwd, group, shadow and gshadow. day: of the last password change, since 1970."""
    accounts = Accounts()
    _read_masters(tree, accounts)
    for path in ("usr/lib/sysusers.d", "etc/sysusers.d"):
        for name in tree.names(path):
            for line in tree.lines(f"{path}/{name}"):
                add_sysuser(accounts, line)
    if tree.exists("usr/lib/apt/methods"):
        accounts.add_user(User("_apt", 42, _NOGROUP))
    users, groups = accounts.users.values(), accounts.groups
    tree.write("etc/passwd", "".join(_passwd_line(user) for user in users))
    tree.write(
        "etc/shadow", "".join(f"{u.name}:*:{day}:0:99999:7:::\n" for u in users), 0o640, _SHADOW_GID
    )
    lines = {name: ",".join(accounts.members.get(name, [])) for name in groups}
    tree.write("etc/group", "".join(f"{n}:x:{groups[n]}:{m}\n" for n, m in lines.items()))
    tree.write(
        "etc/gshadow", "".join(f"{n}:*::{m}\n" for n, m in lines.items()), 0o640, _SHADOW_GID
    )
    for name in ("etc/subuid", "etc/subgid"):
        tree.default(name, b"")


def _read_masters(tree: Tree, accounts: Accounts) -> None:
    for line in tree.lines("usr/share/base-passwd/passwd.master"):
        name, _, uid, gid, gecos, home, shell = (*line.split(":"), *[""] * 7)[:7]
        if uid.isdecimal() and gid.isdecimal():
            accounts.add_user(User(name, int(uid), int(gid), gecos, home, shell))
    for line in tree.lines("usr/share/base-passwd/group.master"):
        name, _, gid = (*line.split(":"), "", "", "")[:3]
        if gid.isdecimal():
            accounts.groups.setdefault(name, int(gid))


def add_sysuser(accounts: Accounts, line: str) -> None:
    """One line of sysusers.d(5): u, g and m; anything else is passed over."""
    try:
        words = shlex.split(line)
    except ValueError:
        return
    kind, name, number, gecos, home, shell = (*words, *["-"] * 6)[:6]
    if not _NAME.fullmatch(name):
        return
    if kind[:1] == "m" and _NAME.fullmatch(number):
        _make_group(accounts, number)
        if name not in accounts.members.setdefault(number, []):
            accounts.members[number].append(name)
    elif kind[:1] == "g":
        _make_group(accounts, name, number)
    elif kind[:1] == "u" and name not in accounts.users:
        uid, _, group = number.partition(":")
        if group.isdecimal():
            gid = int(group)
        elif group in accounts.groups:
            gid = accounts.groups[group]
        else:
            gid = _make_group(accounts, name, uid)
        accounts.add_user(
            User(
                name,
                int(uid) if uid.isdecimal() and len(uid) < 10 else gid,
                gid,
                "" if gecos == "-" else gecos.replace(":", " "),
                "/" if home == "-" else home.replace(":", " "),
                _NOLOGIN if shell == "-" else shell.replace(":", " "),
            )
        )


def _make_group(accounts: Accounts, name: str, number: str = "-") -> int:
    if name not in accounts.groups:
        known = number.isdecimal() and len(number) < 10
        accounts.groups[name] = int(number) if known else accounts.free_number()
    return accounts.groups[name]


def _passwd_line(user: User) -> str:
    return f"{user.name}:x:{user.uid}:{user.gid}:{user.gecos}:{user.home}:{user.shell}\n"
