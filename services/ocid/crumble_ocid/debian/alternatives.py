"""The alternatives system (update-alternatives(1)), from what postinst scripts would have run.

The scripts are not run. Their `update-alternatives --install` commands are literal in nearly every
package and are read; those with variables in them are passed over.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from crumble_ocid.debian.tree import Tree

_COMMAND = "update-alternatives"
_ADMIN = "var/lib/dpkg/alternatives"


@dataclass
class Choice:
    """One `--install`: LINK NAME PATH PRIORITY, and its slaves: name → (link, path)."""

    link: str
    name: str
    path: str
    priority: int
    slaves: dict[str, tuple[str, str]] = field(default_factory=dict)


def parse_script(script: str) -> list[Choice]:
    """The choices a maintainer script installs."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        at = line.find(f"{_COMMAND} -")
        if at < 0 or line.lstrip().startswith("#"):
            continue
        try:
            words = shlex.split(line[at:], comments=True)
        except ValueError:
            continue
        if choice := _parse_words(words):
            found.append(choice)
    return found


def _parse_words(words: list[str]) -> Choice | None:
    """update-alternatives [--quiet] --install LINK NAME PATH PRIORITY [--slave LINK NAME PATH]…"""
    options = next((n for n, word in enumerate(words[1:], 1) if not word.startswith("-")), 0)
    if options == 0 or words[options - 1] != "--install":
        return None
    end = next(
        (n for n, word in enumerate(words) if word in ("||", "&&", ";", "|", ">")), len(words)
    )
    words = [word.rstrip(";") for word in words[options:end]]
    if len(words) < 4 or not words[3].isdecimal() or not _is_name(words[1]):
        return None
    if not all(word.startswith("/") and "$" not in word for word in (words[0], words[2])):
        return None
    choice = Choice(words[0], words[1], words[2], int(words[3][:9]))
    rest = words[4:]
    while len(rest) >= 4 and rest[0] == "--slave":
        link, name, path = rest[1:4]
        if (
            link.startswith("/")
            and path.startswith("/")
            and _is_name(name)
            and "$" not in link + path
        ):
            choice.slaves[name] = (link, path)
        rest = rest[4:]
    return choice


def _is_name(name: str) -> bool:
    return bool(name) and "/" not in name and "$" not in name and not name.startswith(".")


def install_alternatives(tree: Tree, scripts: Iterable[str]) -> None:
    """Makes the links of the best choice of each name, and dpkg's record of all of them."""
    groups: dict[str, list[Choice]] = {}
    for script in scripts:
        for choice in parse_script(script):
            if tree.exists(choice.path[1:]):
                groups.setdefault(choice.name, []).append(choice)
    for name, choices in sorted(groups.items()):
        choices.sort(key=lambda item: item.path)
        best = max(choices, key=lambda item: item.priority)
        _link(tree, best.link, name, best.path)
        for slave, (link, path) in best.slaves.items():
            if tree.exists(path[1:]):
                _link(tree, link, slave, path)
        tree.write(f"{_ADMIN}/{name}", _record(best.link, choices))


def _link(tree: Tree, link: str, name: str, path: str) -> None:
    if not tree.exists(link[1:]):
        tree.link(link[1:], f"/etc/alternatives/{name}")
        tree.link(f"etc/alternatives/{name}", path)


def _record(link: str, choices: list[Choice]) -> str:
    """The administrative file: mode, link, slaves, then each choice (dpkg's own format)."""
    slaves = {name: place for choice in choices for name, (place, _) in choice.slaves.items()}
    lines = ["auto", link]
    for name, place in sorted(slaves.items()):
        lines += [name, place]
    lines.append("")
    for choice in choices:
        lines += [choice.path, str(choice.priority)]
        lines += [choice.slaves.get(name, ("", ""))[1] for name in sorted(slaves)]
    return "\n".join([*lines, "", ""])
