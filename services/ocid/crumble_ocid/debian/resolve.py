"""Which packages a system needs: relations read (Debian Policy 7) and their closure computed.

Greedy like debootstrap's, not a solver: of alternatives the first that is already in or can be had is
taken; a package that conflicts with what is in is passed over for the next alternative. Recommends are
not followed. The same index and wishes always give the same set.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from crumble_common.errors import UsageError
from crumble_ocid.debian.packages import Package, PackageIndex, parse_provides
from crumble_ocid.debian.version import satisfies, version_key

_RELATION = re.compile(
    r"([a-z0-9][a-z0-9+.-]*)(?::([a-z0-9-]+))?\s*"
    r"(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([^)\s]+)\s*\))?\s*(?:\[[^\]]*\])?\s*(?:<[^>]*>\s*)*"
)
_PRIORITIES = {"required": 0, "important": 1, "standard": 2, "optional": 3}


@dataclass(frozen=True, slots=True)
class Relation:
    """A package name, with a version it must compare to when there is an operator."""

    name: str
    operator: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.operator} {self.version})" if self.operator else self.name


@functools.lru_cache(maxsize=4096)
def parse_relations(text: str) -> tuple[tuple[Relation, ...], ...]:
    """ "a (>= 1) | b, c" as alternatives in a conjunction; raises ValueError for anything else."""
    groups = []
    for group in filter(None, (part.strip() for part in text.split(","))):
        alternatives = []
        for item in group.split("|"):
            found = _RELATION.fullmatch(item.strip())
            if not found:
                raise ValueError(f"{item!r} is no relation")
            alternatives.append(Relation(found[1], found[3] or "", found[4] or ""))
        groups.append(tuple(alternatives))
    return tuple(groups)


class Resolver:
    """Selects packages from an index."""

    def __init__(self, index: PackageIndex, where: str) -> None:
        self._index = index
        self._where = where
        self._selected: dict[str, Package] = {}
        self._provided: dict[str, list[tuple[Package, str]]] = {}

    def resolve(self, wishes: Iterable[str], base: Iterable[Package] = ()) -> list[Package]:
        """`base`, the named packages and all they depend on, by name; raises UsageError."""
        queue: deque[Package] = deque()
        newest: dict[str, Package] = {}
        for package in sorted(base, key=lambda item: version_key(item.version)):
            newest[package.name] = package
        for package in newest.values():
            self._select(package, queue)
        for name in wishes:
            self._need((Relation(name),), queue, None)
        while queue:
            package = queue.popleft()
            for text in (package.pre_depends, package.depends):
                for alternatives in _relations_of(package, text):
                    self._need(alternatives, queue, package)
        return sorted(self._selected.values(), key=lambda item: item.name)

    def _need(
        self, alternatives: tuple[Relation, ...], queue: deque[Package], user: Package | None
    ) -> None:
        if any(self._is_met(relation) for relation in alternatives):
            return
        clash = ""
        for relation in alternatives:
            for package in self._candidates(relation):
                other = self._conflict(package)
                if other is None:
                    self._select(package, queue)
                    return
                clash = f"{package.name} conflicts with {other.name}"
        raise self._unmet(alternatives, user, clash)

    def _select(self, package: Package, queue: deque[Package]) -> None:
        self._selected[package.name] = package
        for name, version in parse_provides(package.provides):
            self._provided.setdefault(name, []).append((package, version))
        queue.append(package)

    def _is_met(self, relation: Relation) -> bool:
        there = self._selected.get(relation.name)
        if there is not None and satisfies(there.version, relation.operator, relation.version):
            return True
        return any(_provides(relation, v) for _, v in self._provided.get(relation.name, []))

    def _candidates(self, relation: Relation) -> list[Package]:
        """Real packages first, the newest first; then providers, by priority and name."""
        named = [
            package
            for package in self._index.named(relation.name)
            if satisfies(package.version, relation.operator, relation.version)
        ]
        named.sort(key=lambda item: version_key(item.version), reverse=True)
        providers = [
            package
            for package, version in self._index.providers(relation.name)
            if _provides(relation, version)
        ]
        providers.sort(key=lambda item: (_PRIORITIES.get(item.priority, 9), item.name))
        return [item for item in named + providers if item.name not in self._selected]

    def _conflict(self, package: Package) -> Package | None:
        """A selected package that cannot be in together with this one."""
        for other in self._selected.values():
            if _excludes(package, other) or _excludes(other, package):
                return other
        return None

    def _unmet(
        self, alternatives: tuple[Relation, ...], user: Package | None, clash: str
    ) -> UsageError:
        wanted = " or ".join(map(str, alternatives))
        if clash:
            reason = f"Packages cannot be in one image: {clash}."
        elif user is None:
            reason = f"There is no package {wanted!r} in {self._where}."
        else:
            reason = f"{user.name} needs {wanted}, which {self._where} does not have."
        similar = [] if user else self._index.similar(wanted)
        hint = f"Similar names: {', '.join(similar)}." if similar else "Name other packages."
        return UsageError(reason, code="debian.unresolved", hint=hint)


def _provides(relation: Relation, version: str) -> bool:
    """An unversioned Provides fulfils only relations without a version (Policy 7.5)."""
    if not relation.operator:
        return True
    return bool(version) and satisfies(version, relation.operator, relation.version)


def _excludes(package: Package, other: Package) -> bool:
    for text in (package.conflicts, package.breaks):
        for group in _relations_of(package, text):
            relation = group[0]
            if other.name == package.name:
                continue
            if other.name == relation.name and satisfies(
                other.version, relation.operator, relation.version
            ):
                return True
            if any(
                name == relation.name and _provides(relation, version)
                for name, version in parse_provides(other.provides)
            ):
                return True
    return False


def _relations_of(package: Package, text: str) -> tuple[tuple[Relation, ...], ...]:
    if not text:
        return ()
    try:
        return parse_relations(text)
    except ValueError as error:
        raise UsageError(
            f"The package {package.name} has dependencies that cannot be read: {error}.",
            code="debian.unresolved",
            hint="Choose another package.",
        ) from None
