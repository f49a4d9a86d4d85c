"""Starting a process: who it is to be, and what it is to find, before it is a channel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from crumble_common.errors import CrumbleError
from crumble_common.messages.vm import INIT_PROGRAMS, ProcessStart
from crumble_vmm.agent import users
from crumble_vmm.agent.channels import FileReader, Process, Session
from crumble_vmm.agent.events import Event, Refused
from crumble_vmm.guest import protocol
from crumble_vmm.guest.protocol import Spawn

# The largest /etc/passwd or /etc/group that is read; what is beyond it does not exist.
MAX_LOOKUP = 1 << 20
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Launch:
    """Starts a process: reads the guest's user and group files, both at once, then spawns."""

    def __init__(self, session: Session, request: ProcessStart, token: Any) -> None:
        self._session, self._request, self._token = session, request, token
        self._files: dict[bytes, bytes] = {}
        self._refused = False
        for path in (users.PASSWD, users.GROUP):
            FileReader(session, path, 0, MAX_LOOKUP, self._receiver(path), self._refuse)

    def _receiver(self, path: bytes) -> Callable[[bytes, bool, int], list[Event]]:
        def receive(data: bytes, _eof: bool, number: int) -> list[Event]:
            # A file that cannot be read holds nobody: an image need not have either.
            self._files[path] = b"" if number else data
            return self._spawn() if len(self._files) == 2 else []

        return receive

    def _spawn(self) -> list[Event]:
        request, files = self._request, self._files
        try:
            identity = users.resolve(request.user, files[users.PASSWD], files[users.GROUP])
            Process(self._session, _spawn(request, identity, self._session.hostname), self._token)
        except CrumbleError as error:
            return [Refused(self._token, error)]
        return []

    def _refuse(self, error: CrumbleError) -> Event | None:
        """Of two readers that are given up, only the first answers."""
        first, self._refused = not self._refused, True
        return Refused(self._token, error) if first else None


def _spawn(request: ProcessStart, identity: users.Identity, hostname: str) -> Spawn:
    env = {"PATH": _DEFAULT_PATH, "HOME": identity.home}
    if hostname:
        env["HOSTNAME"] = hostname
    if request.tty:
        env["TERM"] = "xterm"
    env.update(request.env)
    return Spawn(
        argv=[os.fsencode(word) for word in request.argv],
        env=[os.fsencode(f"{name}={value}") for name, value in env.items()],
        cwd=os.fsencode(request.cwd or "/"),
        tty=request.tty,
        stdin=request.stdin,
        rows=request.rows,
        cols=request.cols,
        uid=identity.uid,
        gid=identity.gid,
        groups=identity.groups,
        credit=max(0, min(request.credit, protocol.CREDIT_MASK)),
        init=_is_init(request),
    )


def _is_init(request: ProcessStart) -> bool:
    wanted = request.systemd
    return wanted == "always" or (wanted == "auto" and request.argv[0] in INIT_PROGRAMS)
