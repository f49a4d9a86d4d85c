"""Fuzzing the session: whatever bytes a guest puts into a chain, cut however it likes, the reply is empty
or a well-formed header and payload inside the writable buffers, and the tree goes on working."""

import errno
import stat
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from crumble_common import log
from crumble_common.messages.fs import Share
from crumble_fsd import fuse_wire as w
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.session import PENDING, Session
from crumble_fsd.upper import MemoryUpper
from framework.fsd_world import close
from framework.fuse_client import FuseClient, direct
from framework.layers import write_layer

Mount = Callable[..., FuseClient]
SessionOf = Callable[..., Session]
TREE = {"a": b"data" * 2000, "d": {"x": b"1", "y": {}}, "s": "a"}
NODES = st.sampled_from([0, 1, 2, 3, 4, 5, 1 << 32 | 1, 1 << 32 | 2, 1 << 32 | 3, 1 << 63])
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 7, 16, 4095, 4096, 65536, 1 << 20, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
) | st.integers(0, (1 << 64) - 1)  # fmt: skip
NAMES = st.sampled_from([b"a", b"d", b"x", b"s", b"new", b"..", b".", b"", b"a/b", b"n" * 255, b"n" * 256, b"user.k", b"security.capability"])  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Fields of random sizes and telling values, names with and without NULs, and plain noise."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            parts.append(draw(NUMBERS).to_bytes(8, "little"))
        elif kind == 1:
            parts.append((draw(NUMBERS) & 0xFFFFFFFF).to_bytes(4, "little"))
        elif kind == 2:
            parts.append(draw(NAMES) + b"\0" * draw(st.integers(0, 2)))
        else:
            parts.append(draw(st.binary(max_size=40)))
    return b"".join(parts)


@st.composite
def requests(
    draw: st.DrawFn, nodes: st.SearchStrategy[int] = NODES
) -> tuple[list[bytes], list[int]]:
    """Readable buffers and sizes of writable ones."""
    body = draw(bodies())
    opcode = draw(st.integers(0, 64) | st.sampled_from([4096, 0xFFFFFFFF]))
    length = draw(st.sampled_from([None, None, None, None, 0, 39, 40, 0xFFFFFFFF]))
    whole = w.IN_HEADER.pack(
        w.IN_HEADER_SIZE + len(body) if length is None else length,
        opcode, draw(st.sampled_from([1, 2, 2])), draw(nodes), 0, 0, 0, 0, 0,
    ) + body  # fmt: skip
    whole = whole[: len(whole) - draw(st.sampled_from([0, 0, 0, 0, 1, 40]))]
    cuts = sorted([0, len(whole), *draw(st.lists(st.integers(0, len(whole)), max_size=4))])
    readable = [whole[a:b] for a, b in pairwise(cuts) if a < b]
    sizes = draw(st.lists(st.sampled_from([1, 8, 15, 16, 17, 104, 128, 144, 4096]), max_size=5))
    return readable, sizes


def send(session: Session, readable: list[bytes], sizes: list[int]) -> None:
    """One chain; checks the answer."""
    guard = b"\xa5" * 16
    buffers = [bytearray(size) + guard for size in sizes]
    views = [memoryview(buffer)[:-16] for buffer in buffers]
    length = session.handle([memoryview(bytearray(part)) for part in readable], views, object())
    assert all(buffer.endswith(guard) for buffer in buffers)
    if length == PENDING:
        return
    assert 0 <= length <= sum(sizes)
    if length:
        reply = b"".join(map(bytes, views))
        size, error, _ = w.OUT_HEADER.unpack_from(reply)
        assert size == length >= w.OUT_HEADER_SIZE
        assert -4096 < error <= 0
        assert error == 0 or length == w.OUT_HEADER_SIZE


@settings(
    derandomize=True, max_examples=150, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(st.lists(requests(), min_size=1, max_size=25), st.booleans())
def test_any_request_is_answered_or_refused(
    monkeypatch: pytest.MonkeyPatch, chains: list[tuple[list[bytes], list[int]]], locks: bool
) -> None:
    bugs: list[BaseException] = []
    monkeypatch.setattr(log, "exception", lambda _event, problem, **_fields: bugs.append(problem))
    with tempfile.TemporaryDirectory() as work:
        upper = MemoryUpper(1 << 20)
        layers = [write_layer(Path(work), "l", TREE)]
        tree, nodes = new_tree(layers, upper)
        options = options_for(upper, shared=False, remote_locks=locks)
        session = new_session(nodes, [tree], options)
        fuse = FuseClient(direct(session))
        fuse.init()
        for readable, sizes in chains:
            send(session, readable, sizes)
            if bugs:
                raise bugs[0]
        fuse.init()
        assert stat.S_ISDIR(fuse.getattr(1).mode)
        for entry in fuse.listdir(1, plus=True):
            assert entry.name
        upper.close()
        close(layers)


@pytest.mark.parametrize("room", [0, 1, 15, 16])
def test_room_that_holds_no_header_is_left_alone(tmp_path: Path, room: int) -> None:
    upper = MemoryUpper(1 << 20)
    layers = [write_layer(tmp_path, "l", TREE)]
    tree, nodes = new_tree(layers, upper)
    session = new_session(nodes, [tree], options_for(upper, shared=False))
    FuseClient(direct(session)).init()
    answer = bytearray(room)
    request = w.IN_HEADER.pack(w.IN_HEADER_SIZE, w.FUSE_DESTROY, 7, 1, 0, 0, 0, 0, 0)
    length = session.handle([memoryview(request)], [memoryview(answer)] if room else [])
    assert length == (16 if room == 16 else 0)
    assert bool(any(answer)) == bool(length)
    upper.close()
    close(layers)


SHARE_NODES = NODES | st.integers(0, 8).map(lambda n: 1 << 62 | n)


@settings(derandomize=True, max_examples=100, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.lists(requests(SHARE_NODES), min_size=1, max_size=25))
def test_nothing_outside_a_share_is_touched(
    monkeypatch: pytest.MonkeyPatch, chains: list[tuple[list[bytes], list[int]]]
) -> None:
    """The same requests at a tree with a host directory in it, next to one that must stay as it is."""
    bugs: list[BaseException] = []
    monkeypatch.setattr(log, "exception", lambda _event, problem, **_fields: bugs.append(problem))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "shared" / "d").mkdir(parents=True)
        (work / "shared" / "a").write_text("shared")
        (work / "shared" / "s").symlink_to("../outside/a")
        (work / "outside").mkdir()
        (work / "outside" / "a").write_text("precious")
        before = _picture(work / "outside")
        upper = MemoryUpper(1 << 20)
        tree, nodes = new_tree([], upper)
        shares = add_shares(tree, nodes, [Share(str(work / "shared"), "/d")])
        options = options_for(upper, shared=True, remote_locks=True)
        session = new_session(nodes, [tree, *shares], options)
        fuse = FuseClient(direct(session))
        fuse.init()
        for path in ("d", "d/a", "d/d", "d/s"):
            fuse.resolve(path)
        for readable, sizes in chains:
            send(session, readable, sizes)
            if bugs:
                raise bugs[0]
        fuse.init()
        fuse.resolve("d")
        shares[0].close()
        upper.close()
        assert _picture(work / "outside") == before


def _picture(where: Path) -> list[tuple[str, int, int, bytes]]:
    return [
        (
            str(path),
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [where, *where.iterdir()]
    ]


# What the fuzzer should find, written down.


def refused(fuse: FuseClient, number: int, opcode: int, nodeid: int, *body: bytes) -> None:
    with pytest.raises(OSError, match=f"Errno {number}]"):
        fuse.call(opcode, nodeid, *body, room=200)


def test_names_that_are_no_names(mount: Mount) -> None:
    fuse = mount({"d": {}})
    for name in (b"\0", b".\0", b"..\0", b"a/b\0", b"no end"):
        refused(fuse, errno.EINVAL, w.FUSE_LOOKUP, 1, name)
        refused(fuse, errno.EINVAL, w.FUSE_MKDIR, 1, w.MKDIR_IN.pack(0o755, 0), name)
    refused(fuse, errno.ENAMETOOLONG, w.FUSE_LOOKUP, 1, b"n" * 256 + b"\0")
    refused(fuse, errno.EINVAL, w.FUSE_SYMLINK, 1, b"name\0", b"target without end")
    refused(fuse, errno.ENAMETOOLONG, w.FUSE_SYMLINK, 1, b"name\0", b"t" * 4096 + b"\0")
    assert fuse.names(1) == {b"d"}


def test_nodes_and_handles_that_are_none(mount: Mount) -> None:
    fuse = mount({"f": b"data"})
    for opcode in (w.FUSE_LOOKUP, w.FUSE_GETATTR, w.FUSE_READ, w.FUSE_UNLINK):
        refused(fuse, errno.ESTALE, opcode, 99, bytes(100))
    node = fuse.lookup(1, b"f").nodeid
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}]"):
        fuse.read(node, 0, 10, fh=7)
    with pytest.raises(OSError, match=f"Errno {errno.ESTALE}]"):
        fuse.rename(1, b"f", 99, b"g")
    fuse.forget(99, 5)
    fuse.batch_forget((99, 1), (node, 1 << 60))
    assert fuse.read_path("f") == b"data"


def test_offsets_and_sizes_beyond_everything(mount: Mount) -> None:
    fuse = mount({"f": b"data"})
    node = fuse.lookup(1, b"f").nodeid
    assert fuse.read(node, 1 << 62, 10) == b""
    body = w.READ_IN.pack(0, (1 << 63) - 1, 10, 0, 0, 0, 0)
    refused(fuse, errno.EINVAL, w.FUSE_READ, node, body)
    refused(fuse, errno.EINVAL, w.FUSE_READ, node, w.READ_IN.pack(0, 0, 1 << 31, 0, 0, 0, 0))
    lying = w.WRITE_IN.pack(0, 0, 100, 0, 0, 0, 0)
    refused(fuse, errno.EINVAL, w.FUSE_WRITE, node, lying, b"short")
    with pytest.raises(OSError, match=f"Errno {errno.EFBIG}]"):
        fuse.setattr(node, size=(1 << 63) - 1)
    with pytest.raises(OSError, match=f"Errno {errno.EFBIG}]"):
        fuse.fallocate(node, 0, 1 << 62, 1 << 62)
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}]"):
        fuse.setattr(node, size=1 << 63)


def test_nothing_is_served_before_init(session_of: SessionOf) -> None:
    fuse = FuseClient(direct(session_of({})))
    with pytest.raises(OSError, match=f"Errno {errno.EIO}]"):
        fuse.getattr(1)
    fuse.init()
    fuse.getattr(1)


def test_a_reply_without_room_changes_nothing(session_of: SessionOf) -> None:
    session = session_of({})
    fuse = FuseClient(direct(session))
    fuse.init()
    body = w.MKDIR_IN.pack(0o755, 0) + b"d\0"
    refused_for_room = fuse.call
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}]"):
        refused_for_room(w.FUSE_MKDIR, 1, body, room=100)
    assert fuse.names(1) == set()


def test_a_guest_that_starts_again_holds_nothing(session_of: SessionOf) -> None:
    session = session_of({"f": b"data"})
    fuse = FuseClient(direct(session))
    fuse.init()
    node = fuse.lookup(1, b"f").nodeid
    fuse.unlink(1, b"f")
    before = len(session.nodes)
    fuse.init()
    assert len(session.nodes) == before - 1
    with pytest.raises(OSError, match=f"Errno {errno.ESTALE}]"):
        fuse.getattr(node)
