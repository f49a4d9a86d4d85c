"""The soft CPU's tests run on both of its engines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# CRUMBLE_SOFT_JIT: "eager" translates every block before it first runs.
ENGINES = {"interpreter": "0", "translator": "eager"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrizes what tests the CPU, not the tables before it."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if name.startswith("test_rv64_") and name not in ("test_rv64_asm", "test_rv64_decode"):
        metafunc.fixturenames.append("engine")
        metafunc.parametrize("engine", ENGINES, indirect=True, scope="module")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Machines that are made meanwhile run on this engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRUMBLE_SOFT_JIT", ENGINES[request.param])
        yield request.param
