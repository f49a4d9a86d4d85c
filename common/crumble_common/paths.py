"""Where Crumble keeps things on the host.

Three places, each overridable: the runtime directory (sockets; 0700, gone after a reboot), the data
directory (image store, kernels, snapshots) and, inside a runtime directory, one folder a VM.
"""

from __future__ import annotations

import os
import stat

from crumble_common.errors import HostError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

# sockaddr_un holds 108 bytes with a NUL; the longest name that we put below is this.
_MAX_RUNTIME_PATH = 107 - len("/run-12345678/heartbeats")
_CHOOSE = "Set CRUMBLE_RUNTIME_DIR and CRUMBLE_DATA_DIR to directories of yours."


def absolute(path: str) -> str:
    """Where it is, whatever directory somebody is in."""
    return os.path.join(os.getcwd(), path)  # noqa: PTH109  a Path takes a tenth of a command to be imported


def chosen() -> dict[str, str]:
    """What the environment says of places, for a process that is elsewhere."""
    found = ((name, os.environ.get(name)) for name in ("CRUMBLE_RUNTIME_DIR", "CRUMBLE_DATA_DIR"))
    return {name: absolute(place) for name, place in found if place}


def leave() -> None:
    """Goes to /, and is in nobody's way; places that were given relatively stay where they are."""
    os.environ.update(chosen())
    os.chdir("/")


def runtime_dir() -> Path:
    """The private directory of sockets, created 0700; refuses one that belongs to somebody else."""
    from pathlib import Path

    return Path(runtime_place())


def runtime_place() -> str:
    """The same for those who must start fast: a Path takes a tenth of what a command does to be imported."""
    chosen = os.environ.get("CRUMBLE_RUNTIME_DIR")
    if not chosen:
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        usable = base and len(base) < _MAX_RUNTIME_PATH - 8 and os.access(base, os.W_OK)
        chosen = f"{base}/crumble" if usable else f"/tmp/crumble-{os.getuid()}"  # noqa: S108
    place = absolute(chosen).rstrip("/") or "/"
    _check_for_sockets(place)
    _make_private(place)
    return place


def _check_for_sockets(path: str) -> None:
    size = len(os.fsencode(path))
    if size > _MAX_RUNTIME_PATH:
        why = f"has {size} bytes, which is too long for sockets (at most {_MAX_RUNTIME_PATH})"
    elif path.encode("utf-8", "ignore") != os.fsencode(path):
        why = "is not text in UTF-8"
    else:
        return
    raise HostError(
        f"The runtime directory's path {path[:200]!r} {why}.",
        code="host.directory",
        hint="Set CRUMBLE_RUNTIME_DIR to another one.",
    )


def data_dir() -> Path:
    """Images, kernels and snapshots: $CRUMBLE_DATA_DIR, else the user's data directory."""
    from pathlib import Path

    chosen = os.environ.get("CRUMBLE_DATA_DIR")
    return private_dir(Path(chosen).absolute() if chosen else _user_data_dir())


def _user_data_dir() -> Path:
    from pathlib import Path

    import platformdirs

    return Path(platformdirs.user_data_dir("crumble", appauthor=False))


def store_dir() -> Path:
    """The image store, below the data directory."""
    return private_dir(data_dir() / "store")


def private_dir(path: Path) -> Path:
    """Creates `path` 0700 when missing; raises HostError when it is not ours alone."""
    _make_private(str(path))
    return path


def _make_private(path: str) -> None:
    try:
        info = _found(path) or _made(path)
    except OSError as error:
        raise HostError(
            f"Cannot create {path}: {error.strerror}.", code="host.directory", hint=_CHOOSE
        ) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
        raise HostError(
            f"{path} is not a directory owned by you.",
            code="host.directory",
            hint=f"Remove it, or choose another place. {_CHOOSE}",
        )


def _found(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _made(path: str) -> os.stat_result:
    from pathlib import Path

    Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.lstat(path)
