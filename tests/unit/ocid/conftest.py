from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_ocid import transfer
from crumble_ocid.library import Library
from crumble_ocid.store import Store
from crumble_ocid.transfer import Transport
from framework.debian_archive import DebianArchive
from framework.registry import Registry, running_registry


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, mirrors or proxies of this host; no pauses."""
    for name in (
        "REGISTRY_AUTH_FILE",
        "XDG_RUNTIME_DIR",
        "DOCKER_CONFIG",
        "CRUMBLE_DEBIAN_MIRROR",
        "CRUMBLE_DEBIAN_KEYRING",
        "CRUMBLE_INSECURE_REGISTRIES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.setattr(transfer, "_PAUSE", 0.001)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as made:
        yield made


@pytest.fixture
def archive(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DebianArchive]:
    made = DebianArchive(registry)
    monkeypatch.setenv("CRUMBLE_DEBIAN_MIRROR", made.uri)
    keyring = made.write_keyring(tmp_path / "keyring.asc")
    monkeypatch.setenv("CRUMBLE_DEBIAN_KEYRING", str(keyring))
    yield made


@pytest.fixture
def library(store: Store) -> Iterator[Library]:
    made = Library(store)
    yield made
    made.close()


@pytest.fixture
def hasty(store: Store) -> Iterator[Library]:
    """A library for servers that hang: it waits for no answer longer than 0.4 s."""
    made = Library(store, transport=Transport(read_timeout=0.4))
    yield made
    made.close()
