"""Which of the soft CPU's engines machines run on that are made meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# As CRUMBLE_SOFT_JIT has them: never translated, hot blocks, every block before it first runs.
INTERPRETER, HOT, EAGER = "0", "1", "eager"


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Sets the variable for a while."""
    before = os.environ.get("CRUMBLE_SOFT_JIT")
    os.environ["CRUMBLE_SOFT_JIT"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["CRUMBLE_SOFT_JIT"]
        else:
            os.environ["CRUMBLE_SOFT_JIT"] = before
