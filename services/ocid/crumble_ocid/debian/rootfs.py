"""What makes unpacked packages a usable system: the few things their scripts would have done.

No maintainer script is run. Tables say what base-files, base-passwd, libc-bin, tzdata, debianutils and
libpam-runtime create when they are configured; alternatives, accounts and dpkg's database have modules
of their own.
"""

from __future__ import annotations

from crumble_common.layer_index import Inode
from crumble_ocid.debian.accounts import install_accounts
from crumble_ocid.debian.alternatives import install_alternatives
from crumble_ocid.debian.dpkg_database import Installed, write_database
from crumble_ocid.debian.ld_cache import write_cache
from crumble_ocid.debian.tree import Tree

_DAY = 86400 * 1_000_000_000
_MAIL_GID, _UTMP_GID = 8, 43
# Merged /usr: made before anything is unpacked, so that packages that still say /bin land in /usr/bin.
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEFAULTS = [
    ("usr/share/base-files/dot.profile", "root/.profile"),
    ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ("usr/share/base-files/profile", "etc/profile"),
    ("usr/share/base-files/motd", "etc/motd"),
    ("usr/share/base-files/info.dir", "usr/share/info/dir"),
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
    ("usr/share/base-files/nsswitch.conf", "etc/nsswitch.conf"),
]
_DIRECTORIES = [
    ("root", 0o700, 0), ("tmp", 0o1777, 0), ("proc", 0o755, 0), ("sys", 0o755, 0), ("dev", 0o755, 0),
    ("run", 0o755, 0), ("run/lock", 0o1777, 0), ("mnt", 0o755, 0), ("srv", 0o755, 0),
    ("opt", 0o755, 0), ("media", 0o755, 0), ("home", 0o755, 0), ("etc/opt", 0o755, 0),
    ("var/opt", 0o755, 0), ("var/mail", 0o2775, _MAIL_GID), ("var/tmp", 0o1777, 0),
    *((f"usr/local{name}", 0o755, 0) for name in (
        "", "/bin", "/etc", "/games", "/include", "/lib", "/libexec", "/sbin", "/share",
        "/share/man", "/src")),
]  # fmt: skip
_LINKS = [
    ("var/run", "/run"),
    ("var/lock", "/run/lock"),
    ("var/spool/mail", "../mail"),
    ("usr/local/man", "share/man"),
]
_LOGS = [("var/log/wtmp", 0o664), ("var/log/btmp", 0o660), ("var/log/lastlog", 0o664)]
# What pam-auth-update makes when only pam_unix is there.
_PAM = {
    "auth": "auth [success=1 default=ignore] pam_unix.so nullok\n"
    "auth requisite pam_deny.so\nauth required pam_permit.so\n",
    "account": "account [success=1 new_authtok_reqd=done default=ignore] pam_unix.so\n"
    "account requisite pam_deny.so\naccount required pam_permit.so\n",
    "password": "password [success=1 default=ignore] pam_unix.so obscure yescrypt\n"
    "password requisite pam_deny.so\npassword required pam_permit.so\n",
    "session": "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n"
    "session required pam_permit.so\nsession required pam_unix.so\n",
    "session-noninteractive": "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n"
    "session required pam_permit.so\nsession required pam_unix.so\n",
}


def prepare(tree: Tree, essential: list[str]) -> None:
    """Before unpacking: merged /usr. essential: of MERGED, those the architecture always has."""
    for name in essential:
        tree.builder.make_directory(f"usr/{name}".encode())
        tree.link(name, f"usr/{name}")


def finish(tree: Tree, packages: list[Installed], architecture: str, apt_source: str) -> None:
    """After unpacking: everything else. apt_source: the sources file, in deb822."""
    newest = tree.builder.newest_mtime_ns
    for source, target in _DEFAULTS:
        tree.copy(source, target)
    for name, mode, gid in _DIRECTORIES:
        tree.directory(name, mode, gid)
    for name, target in _LINKS:
        tree.link(name, target)
    for name in MERGED:
        if tree.exists(f"usr/{name}") and not tree.exists(name):
            tree.link(name, f"usr/{name}")
    for name, mode in _LOGS:
        tree.default(name, b"", mode, _UTMP_GID)
    _finish_etc(tree, apt_source)
    install_accounts(tree, newest // _DAY)
    install_alternatives(tree, [_script(item) for item in packages])
    write_cache(tree, architecture)
    write_database(tree, packages, architecture)
    _settle(tree.builder.root, newest)


def _settle(root: Inode, mtime_ns: int) -> None:
    """Gives what no package described (directories only implied, links of `prepare`) a time."""
    todo = [root]
    while todo:
        inode = todo.pop()
        todo += (inode.children or {}).values()
        if inode.implicit or inode.mtime_ns == 0:
            inode.implicit, inode.mtime_ns = False, mtime_ns


def _finish_etc(tree: Tree, apt_source: str) -> None:
    shells = list(tree.lines("usr/share/debianutils/shells"))
    for name in tree.names("usr/share/debianutils/shells.d"):
        shells += tree.lines(f"usr/share/debianutils/shells.d/{name}")
    tree.default(
        "etc/shells", "# /etc/shells: valid login shells\n" + "".join(f"{s}\n" for s in shells)
    )
    if tree.exists("etc/dpkg/origins/debian") and not tree.exists("etc/dpkg/origins/default"):
        tree.link("etc/dpkg/origins/default", "debian")
    if tree.exists("usr/share/zoneinfo/Etc/UTC") and not tree.exists("etc/localtime"):
        tree.link("etc/localtime", "/usr/share/zoneinfo/Etc/UTC")
    if not tree.exists("usr/bin/sh"):
        tree.link("usr/bin/sh", "dash" if tree.exists("usr/bin/dash") else "bash")
    if tree.exists("usr/share/pam"):
        for name, text in _PAM.items():
            tree.default(f"etc/pam.d/common-{name}", text)
    if tree.exists("etc/apt/sources.list.d"):
        tree.default("etc/apt/sources.list.d/debian.sources", apt_source)
    tree.default("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n")
    tree.default("etc/environment", b"")
    tree.default("etc/fstab", b"")


def _script(item: Installed) -> str:
    return item.control.members.get("postinst", b"").decode("utf-8", "replace")
