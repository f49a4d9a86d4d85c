"""dpkg's database of what is installed (/var/lib/dpkg), so that dpkg and apt in the guest go on from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from crumble_ocid.debian.deb import Control
from crumble_ocid.debian.tree import Tree

_ADMIN = "var/lib/dpkg"
_SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "config")


@dataclass(frozen=True)
class Installed:
    """A package that was unpacked: its control part and its paths, in order, as "./a/b/"."""

    control: Control
    paths: list[str]

    @property
    def info_name(self) -> str:
        """The name of its files in info/: with the architecture where several can be installed."""
        fields = self.control.fields
        name = fields["package"]
        same = fields.get("multi-arch") == "same"
        return f"{name}:{fields.get('architecture', 'all')}" if same else name


def write_database(tree: Tree, packages: list[Installed], architecture: str) -> None:
    """Writes status, info/ and triggers/ for the packages."""
    for name in ("available", "diversions", "statoverride", "lock", "lock-frontend"):
        tree.default(f"{_ADMIN}/{name}", b"", 0o640 if name.startswith("lock") else 0o644)
    tree.write(f"{_ADMIN}/arch-native", f"{architecture}\n")
    tree.write(f"{_ADMIN}/info/format", "1\n")
    tree.write(f"{_ADMIN}/status", "\n".join(status(tree, item) for item in packages))
    triggers: dict[str, list[str]] = {"Unincorp": [], "File": []}
    for item in packages:
        base = f"{_ADMIN}/info/{item.info_name}"
        tree.write(f"{base}.list", "".join(f"{_listed(path)}\n" for path in item.paths))
        for name, data in sorted(item.control.members.items()):
            tree.write(f"{base}.{name}", data, 0o755 if name in _SCRIPTS else 0o644)
        _collect_triggers(item, triggers)
    for name, lines in sorted(triggers.items()):
        tree.write(f"{_ADMIN}/triggers/{name}", "".join(f"{line}\n" for line in lines))


def status(tree: Tree, item: Installed) -> str:
    """The package's stanza in the status file."""
    first, _, rest = item.control.text.partition("\n")
    text = f"{first}\nStatus: install ok installed\n{rest}"
    conffiles = item.control.members.get("conffiles", b"").decode("utf-8", "replace").split("\n")
    lines = []
    for path in filter(None, (line.strip() for line in conffiles)):
        if path.startswith("/") and tree.exists(path[1:]):
            digest = hashlib.md5(tree.read(path[1:]), usedforsecurity=False).hexdigest()
            lines.append(f" {path} {digest}\n")
    return text + ("Conffiles:\n" + "".join(lines) if lines else "")


def _listed(path: str) -> str:
    """ "./a/b/" as "/a/b"; the root as "/."."""
    inner = path.removeprefix(".").strip("/")
    return f"/{inner}" if inner else "/."


def _collect_triggers(item: Installed, triggers: dict[str, list[str]]) -> None:
    """deb-triggers(5): interests, by file (triggers/File) or by name (triggers/NAME)."""
    for line in item.control.members.get("triggers", b"").decode("utf-8", "replace").splitlines():
        kind, _, name = line.partition("#")[0].strip().partition(" ")
        name = name.strip()
        if not kind.startswith("interest") or not name:
            continue
        user = item.control.fields["package"] + ("/noawait" if kind.endswith("-noawait") else "")
        if name.startswith("/"):
            triggers["File"].append(f"{name} {user}")
        elif "/" not in name and not name.startswith("."):
            triggers.setdefault(name, []).append(user)
