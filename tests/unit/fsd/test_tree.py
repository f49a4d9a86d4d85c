"""What is put into a tree before the guest starts, and what a damaged layer does."""

import errno
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crumble_common import log
from crumble_common.errors import UsageError
from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.tree import Tree
from crumble_fsd.upper import MemoryUpper
from framework.fsd_world import close
from framework.fuse_client import FuseClient, direct
from framework.layers import open_layer, write_layer

IMAGE = {
    "etc": {"resolv.conf": "../run/resolv.conf", "hosts": b"image", "d": {}},
    "run": {"resolv.conf": b"image"},
    "link": "etc",
    "absolute": "/run",
    "file": b"",
}


Made = tuple[Tree, Callable[[], FuseClient]]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Made]:
    upper = MemoryUpper(1 << 20)
    layers = [write_layer(tmp_path, "l", IMAGE)]
    made, nodes = new_tree(layers, upper)

    def client() -> FuseClient:
        fuse = FuseClient(direct(new_session(nodes, [made], options_for(upper, shared=False))))
        fuse.init()
        return fuse

    yield made, client
    upper.close()
    close(layers)


def test_injected_files_take_the_place_of_files_and_links(tree: Made) -> None:
    made, client = tree
    made.inject("/etc/resolv.conf", b"nameserver 10.0.2.3\n", 0o644)
    made.inject("/etc/hosts", b"hosts", 0o600)
    made.inject("/new/folders/file", b"", 0o755)
    made.inject("/link/through", b"a link of the image", 0o644)
    made.inject("/absolute/x", b"in run", 0o644)
    fuse = client()
    assert fuse.read_path("etc/resolv.conf") == b"nameserver 10.0.2.3\n"
    assert fuse.read_path("run/resolv.conf") == b"image"
    assert stat.S_IMODE(fuse.resolve("etc/hosts").attr.mode) == 0o600
    assert stat.S_IMODE(fuse.resolve("new/folders/file").attr.mode) == 0o755
    assert fuse.read_path("etc/through") == b"a link of the image"
    assert fuse.read_path("run/x") == b"in run"
    fuse.unlink(fuse.resolve("etc").nodeid, b"hosts")  # they are the guest's now


@pytest.mark.parametrize("path", ["/", "relative", "/a/../b", "/etc/d", "/file/x", "/" + "n" * 256])
def test_paths_nothing_can_be_put_at(tree: Made, path: str) -> None:
    with pytest.raises(UsageError):
        tree[0].inject(path, b"", 0o644)


def test_a_damaged_layer_is_an_error_in_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[str] = []
    monkeypatch.setattr(log, "error", lambda event, **fields: errors.append(fields["code"]))
    close([write_layer(tmp_path, "l", {"a": b"1", "b": b"2"})])
    index = bytearray((tmp_path / "l.index").read_bytes())
    index[index.index(b"ab", 200) + 1] = ord("/")  # in the names
    (tmp_path / "l.index").write_bytes(index)
    upper = MemoryUpper(1 << 20)
    layer = open_layer(tmp_path, "l")
    made, nodes = new_tree([layer], upper)
    fuse = FuseClient(direct(new_session(nodes, [made], options_for(upper, shared=False))))
    fuse.init()
    with pytest.raises(OSError, match=f"Errno {errno.EIO}]"):
        fuse.listdir(1)
    assert errors == ["store.corrupt"]
    fuse.getattr(1)  # it goes on
    upper.close()
    close([layer])


def test_contents_that_end_early_are_an_error_in_the_guest(tmp_path: Path) -> None:
    layer = write_layer(tmp_path, "l", {"f": b"x" * 10_000})
    with (tmp_path / "l.contents").open("r+b") as file:
        file.truncate(5_000)
    upper = MemoryUpper(1 << 20)
    made, nodes = new_tree([layer], upper)
    fuse = FuseClient(direct(new_session(nodes, [made], options_for(upper, shared=False))))
    fuse.init()
    node = fuse.lookup(1, b"f").nodeid
    assert fuse.read(node, 0, 5_000) == b"x" * 5_000
    for call in (lambda: fuse.read(node, 0, 10_000), lambda: fuse.write(node, 0, b"y")):
        with pytest.raises(OSError, match=f"Errno {errno.EIO}]"):
            call()
    upper.close()
    close([layer])
