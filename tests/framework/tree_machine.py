"""A state machine for hypothesis: random file operations on fsd and on a real directory.

Results, errors and trees stay the same.
"""
# The model is the os module, call for call.
# ruff: noqa: PTH101, PTH102, PTH106, PTH108, PTH114, PTH211

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import Phase
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.upper import MemoryUpper, Upper
from crumble_native import files
from framework.fuse_client import FuseClient, direct
from framework.layers import write_layer
from framework.trees import fuse_tree, real_tree

NAMES = st.sampled_from(["a", "b", "c", "dir", "low"])
# A directory that its owner cannot enter stops the model, but not the server, unless both are root.
_PRIVATE = 0o600 if os.geteuid() == 0 else 0o700
# An ordinary user's writes take set-user-ID away, those of the guest's root do not.
_BITS = 0o7777 if os.geteuid() == 0 else 0o777
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.binary(min_size=1, max_size=3) | st.integers(1, 20_000).map(lambda n: b"x" * n)
OFFSETS = st.integers(0, 20_000)

LOW = {
    "low": {"a": b"lower a", "b": b"B" * 9000, "dir": {"c": b"deep", "low": "b"}},
    "a": b"first",
    "dir": {"a": {}, "b": b"second", "c": b"gone above"},
}
HIGH = {"dir": {"low": b"from the second layer", "b": b"hidden"}, "low": {"dir": {"a": b"merged"}}}

# The kernel would refuse some calls before fsd sees them, with an errno of its own choice.
SAME_REFUSAL = [
    {errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL},
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL},
]

Outcome = tuple[str, Any]


def outcome(call: Callable[[], Any]) -> Outcome:
    """("ok", result) or ("error", errno)."""
    try:
        return "ok", call()
    except OSError as error:
        return "error", error.errno


class Machine(RuleBasedStateMachine):
    """One tree, twice."""

    numbers_stay = True

    def make_upper(self) -> Upper:
        return MemoryUpper(1 << 28)

    @initialize(layers=st.integers(0, 2))
    def begin(self, layers: int) -> None:
        where = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.work = Path(tempfile.mkdtemp(dir=where))
        self.real = self.work / "real"
        self.real.mkdir()
        for tree in (LOW, HIGH)[:layers]:
            _write_real(self.real, tree)
        self.layers = [
            write_layer(self.work, f"l{n}", tree) for n, tree in enumerate((LOW, HIGH)[:layers])
        ]
        self.upper = self.make_upper()
        self.open: dict[int, tuple[int, int]] = {}  # slot → (real fd, nodeid)
        self.mount()

    def mount(self) -> None:
        self.tree, nodes = new_tree(self.layers, self.upper)
        self.session = new_session(
            nodes, [self.tree], options_for(self.upper, shared=False), commit=self.upper.commit
        )
        self.fuse = FuseClient(direct(self.session))
        self.fuse.init()

    def teardown(self) -> None:
        if not hasattr(self, "work"):
            return
        for fd, _ in self.open.values():
            os.close(fd)
        for layer in self.layers:
            layer.index.close()
            os.close(layer.contents)
        self.upper.close()
        shutil.rmtree(self.work)

    def both(self, real: Callable[[], Any], fuse: Callable[[], Any]) -> Any:
        """Does it twice; the result must be the same. Returns it, or None for an error."""
        expected, got = outcome(real), outcome(fuse)
        if expected != got and expected[0] == got[0] == "error":
            assert any({expected[1], got[1]} <= alike for alike in SAME_REFUSAL), (expected, got)
        elif expected[0] != got[0] or expected[1] is not None:
            assert expected == got
        return got[1] if got[0] == "ok" else None

    # Where things are, on both sides.

    def node(self, path: str) -> int:
        return self.fuse.resolve(path).nodeid

    def parent(self, path: str) -> tuple[int, bytes]:
        head, _, tail = path.rpartition("/")
        entry = self.fuse.resolve(head)
        if not stat.S_ISDIR(entry.attr.mode):
            raise NotADirectoryError(errno.ENOTDIR, path)
        return entry.nodeid, tail.encode()

    def real_path(self, path: str) -> str:
        """Refuses paths through links, which the client does not follow either."""
        at = self.real
        for part in path.split("/")[:-1]:
            at = at / part
            if at.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, path)
        return str(at / path.rpartition("/")[2])

    def regular(self, path: str) -> int:
        """nodeid of a regular file, as open() would find it."""
        entry = self.fuse.resolve(path)
        if stat.S_ISLNK(entry.attr.mode):
            raise OSError(errno.ELOOP, path)
        if stat.S_ISDIR(entry.attr.mode):
            raise IsADirectoryError(errno.EISDIR, path)
        return entry.nodeid

    def real_fd(self, path: str, flags: int = os.O_RDWR) -> int:
        return os.open(self.real_path(path), flags | os.O_NOFOLLOW)

    # Names.

    @rule(path=PATHS, mode=st.sampled_from([0o644, 0o600, 0o4755 & _BITS]))
    def create(self, path: str, mode: int) -> None:
        def real() -> None:
            fd = os.open(self.real_path(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            os.fchmod(fd, mode)
            os.close(fd)

        def fuse() -> None:
            self.fuse.create(*self.parent(path), mode, os.O_CREAT | os.O_EXCL)

        self.both(real, fuse)

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        self.both(
            lambda: os.mkdir(self.real_path(path), 0o755),
            lambda: self.fuse.mkdir(*self.parent(path)) and None,
        )

    @rule(path=PATHS, leads=st.sampled_from(["a", "/nowhere", "x" * 300]))
    def symlink(self, path: str, leads: str) -> None:
        self.both(
            lambda: os.symlink(leads, self.real_path(path)),
            lambda: self.fuse.symlink(*self.parent(path), leads.encode()) and None,
        )

    @rule(path=PATHS)
    def mkfifo(self, path: str) -> None:
        self.both(
            lambda: os.mkfifo(self.real_path(path), 0o644),
            lambda: self.fuse.mknod(*self.parent(path), stat.S_IFIFO | 0o644) and None,
        )

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(
            lambda: os.unlink(self.real_path(path)), lambda: self.fuse.unlink(*self.parent(path))
        )

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(
            lambda: os.rmdir(self.real_path(path)), lambda: self.fuse.rmdir(*self.parent(path))
        )

    @rule(path=PATHS, to=PATHS, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, path: str, to: str, flags: int) -> None:
        def real() -> None:
            old, new = self.real_path(path).encode(), self.real_path(to).encode()
            files.renameat2(-100, old, -100, new, flags)

        def fuse() -> None:
            self.fuse.rename(*self.parent(path), *self.parent(to), flags)

        self.both(real, fuse)

    @rule(path=PATHS, to=PATHS)
    def link(self, path: str, to: str) -> None:
        self.both(
            lambda: os.link(self.real_path(path), self.real_path(to), follow_symlinks=False),
            lambda: self.fuse.link(self.node(path), *self.parent(to)) and None,
        )

    # Contents.

    @rule(path=PATHS, offset=OFFSETS, data=DATA)
    def write(self, path: str, offset: int, data: bytes) -> None:
        def real() -> int:
            fd = self.real_fd(path)
            try:
                return os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        if not self.is_fifo(path):
            self.both(real, lambda: self.fuse.write(self.regular(path), offset, data))

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        def real() -> None:
            fd = self.real_fd(path)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)

        def fuse() -> None:
            self.fuse.setattr(self.regular(path), size=size)

        if not self.is_fifo(path):
            self.both(real, fuse)

    @rule(path=PATHS, mode=st.sampled_from([0, 1, 3]), offset=OFFSETS, length=OFFSETS)
    def fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        def real() -> None:
            fd = self.real_fd(path)
            try:
                files.fallocate(fd, mode, offset, length)
            finally:
                os.close(fd)

        if not self.is_fifo(path):
            self.both(real, lambda: self.fuse.fallocate(self.regular(path), mode, offset, length))

    @rule(path=PATHS, to=PATHS, offset=OFFSETS, to_offset=OFFSETS, length=OFFSETS)
    def copy(self, path: str, to: str, offset: int, to_offset: int, length: int) -> None:
        def real() -> int:
            source = self.real_fd(path)
            try:
                target = self.real_fd(to)
                try:
                    return os.copy_file_range(source, target, length, offset, to_offset)
                finally:
                    os.close(target)
            finally:
                os.close(source)

        def fuse() -> int:
            return self.fuse.copy_range(
                self.regular(path), offset, self.regular(to), to_offset, length
            )

        if not self.is_fifo(path) and not self.is_fifo(to):
            self.both(real, fuse)

    def is_fifo(self, path: str) -> bool:
        with contextlib.suppress(OSError):
            return stat.S_ISFIFO(os.lstat(self.real_path(path)).st_mode)
        return False

    # Attributes.

    @rule(path=PATHS, mode=st.sampled_from([_PRIVATE, 0o755, 0o2711 & _BITS, 0o6755 & _BITS]))
    def chmod(self, path: str, mode: int) -> None:
        def real() -> None:
            target = self.real_path(path)
            if os.path.islink(target):
                raise OSError(errno.ELOOP, path)
            os.chmod(target, mode)

        def fuse() -> None:
            entry = self.fuse.resolve(path)
            if stat.S_ISLNK(entry.attr.mode):
                raise OSError(errno.ELOOP, path)
            self.fuse.setattr(entry.nodeid, mode=mode)

        self.both(real, fuse)

    @rule(path=PATHS, when=st.sampled_from([0, 1, 10**18 + 7, -(10**9)]))
    def utime(self, path: str, when: int) -> None:
        def fuse() -> None:
            self.fuse.setattr(self.node(path), atime=when, mtime=when)

        def real() -> None:
            os.utime(self.real_path(path), ns=(when, when), follow_symlinks=False)

        self.both(real, fuse)
        self.both(
            lambda: os.lstat(self.real_path(path)).st_mtime_ns,
            lambda: _mtime(self.fuse.resolve(path).attr),
        )

    # What is open goes on being itself.

    @rule(path=PATHS, slot=st.integers(0, 3))
    def open_file(self, path: str, slot: int) -> None:
        if slot in self.open or self.is_fifo(path):
            return
        expected = outcome(lambda: self.real_fd(path))
        got = outcome(lambda: self.regular(path))
        assert expected[0] == got[0]
        if got[0] == "ok":
            self.open[slot] = (expected[1], got[1])

    @rule(slot=st.integers(0, 3), offset=OFFSETS, data=DATA)
    def use_open(self, slot: int, offset: int, data: bytes) -> None:
        if slot in self.open:
            fd, nodeid = self.open[slot]
            self.both(
                lambda: os.pwrite(fd, data, offset), lambda: self.fuse.write(nodeid, offset, data)
            )
            assert os.pread(fd, 50_000, 0) == self.fuse.read(nodeid, 0, 50_000)
            assert os.fstat(fd).st_nlink == self.fuse.getattr(nodeid).nlink

    @rule(slot=st.integers(0, 3))
    def close_file(self, slot: int) -> None:
        if slot in self.open:
            fd, nodeid = self.open.pop(slot)
            os.close(fd)
            if not any(other == nodeid for _, other in self.open.values()):
                self.fuse.forget(nodeid, 1 << 40)

    @rule(path=PATHS)
    def forget(self, path: str) -> None:
        """What the guest forgets it can look up again, and finds the same."""
        with contextlib.suppress(OSError):
            entry = self.fuse.resolve(path)
            if all(nodeid != entry.nodeid for _, nodeid in self.open.values()):
                self.fuse.forget(entry.nodeid, 1 << 40)
                again = self.fuse.resolve(path)
                assert again.attr == entry.attr
                assert again.nodeid == entry.nodeid or not self.numbers_stay

    @invariant()
    def same_trees(self) -> None:
        if hasattr(self, "fuse"):
            assert real_tree(self.real) == fuse_tree(self.fuse, 1)


def _mtime(attr: Any) -> int:
    seconds = attr.mtime - (1 << 64) if attr.mtime >> 63 else attr.mtime
    return int(seconds * 10**9 + attr.mtimensec)


def _write_real(where: Path, tree: dict[str, Any]) -> None:
    """The same as a layer has it, over what is there."""
    for name, value in tree.items():
        path = where / name
        if isinstance(value, dict):
            path.mkdir(exist_ok=True)
            _write_real(path, value)
        elif isinstance(value, str):
            path.symlink_to(value)
        else:
            path.write_bytes(value)
            path.chmod(0o644)


# Explaining a failure takes minutes; the shrunk steps say enough.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink]
