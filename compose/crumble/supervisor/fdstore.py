"""Fds the supervisor keeps for others: what must outlive the process that uses it."""

from __future__ import annotations

import os


class FdStore:
    """Open fds by owner ("vm1") and name ("memory"). Owns what is put into it."""

    def __init__(self) -> None:
        self._fds: dict[tuple[str, str], int] = {}

    def put(self, owner: str, name: str, fd: int) -> int:
        """Keeps `fd`, closing what had that name; returns it."""
        self.close(owner, name)
        self._fds[owner, name] = fd
        return fd

    def get(self, owner: str, name: str) -> int:
        """An fd that is kept; KeyError."""
        return self._fds[owner, name]

    def of(self, owner: str) -> dict[str, int]:
        """All of an owner's, by name."""
        return {name: fd for (kept_for, name), fd in self._fds.items() if kept_for == owner}

    def close(self, owner: str, name: str = "") -> None:
        """Closes one fd of an owner, or all of them."""
        for key in [key for key in self._fds if key[0] == owner and name in ("", key[1])]:
            os.close(self._fds.pop(key))

    def close_all(self) -> None:
        """Closes everything."""
        for owner in {owner for owner, _ in self._fds}:
            self.close(owner)

    def __len__(self) -> int:
        return len(self._fds)
