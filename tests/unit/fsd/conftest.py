"""Trees and clients for the tests of fsd."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_common import log
from crumble_common.messages.fs import Share
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.session import Session
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import MemoryUpper
from framework.fsd_world import close
from framework.fuse_client import FuseClient, direct
from framework.layers import write_layer
from framework.share_client import ShareClient, Sharing


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
    """Trees hold fds and have cycles: those of a module go before the next one counts its own."""
    yield
    gc.collect()


@pytest.fixture
def session_of(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Makes a session of a tree over layers given lowest first."""
    made: list[LayerFiles] = []
    sessions: list[Session] = []
    uppers: list[MemoryUpper] = []

    def make(*layers: Any, limit: int = 1 << 26, **options: Any) -> Session:
        files = [write_layer(tmp_path, f"l{n}", layer) for n, layer in enumerate(layers)]
        made.extend(files)
        uppers.append(MemoryUpper(limit))
        tree, nodes = new_tree(files, uppers[-1])
        chosen = options_for(uppers[-1], **{"shared": False, **options})
        sessions.append(new_session(nodes, [tree], chosen))
        return sessions[-1]

    yield make
    for session in sessions:
        session.handles.close()
    for upper in uppers:
        upper.close()
    close(made)


@pytest.fixture
def mount(session_of: Callable[..., Session]) -> Callable[..., FuseClient]:
    """Makes a client of such a session."""

    def make(*layers: Any, **options: Any) -> FuseClient:
        client = FuseClient(direct(session_of(*layers, **options)))
        client.init()
        return client

    return make


@pytest.fixture(autouse=True)
def no_bugs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A request that fails for a reason of ours is answered EIO and logged: here it fails the test."""
    bugs: list[BaseException] = []
    monkeypatch.setattr(log, "exception", lambda _event, problem, **_fields: bugs.append(problem))
    yield
    if bugs:
        raise bugs[0]


@pytest.fixture
def sharing(tmp_path: Path) -> Iterator[Sharing]:
    """A client of an image with shares; `layer` is the image."""
    opened: list[Any] = []
    made: list[LayerFiles] = []

    def make(*shares: Share, layer: dict[str, Any] | None = None) -> ShareClient:
        upper = MemoryUpper(1 << 24)
        opened.append(upper)
        layers = [write_layer(tmp_path, "layer", layer)] if layer is not None else []
        made.extend(layers)
        tree, nodes = new_tree(layers, upper)
        added = add_shares(tree, nodes, list(shares))
        opened.extend(added)
        options = options_for(upper, shared=True, remote_locks=True)
        session = new_session(nodes, [tree, *added], options)
        opened.append(session.handles)
        client = ShareClient(direct(session))
        client.init()
        return client

    yield make
    for part in opened:
        part.close()
    close(made)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory of the host's to be shared."""
    where = tmp_path / "host"
    where.mkdir()
    (where / "file").write_text("from the host")
    (where / "dir").mkdir()
    (where / "dir" / "deep").write_text("deep")
    return where
