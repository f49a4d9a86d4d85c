"""What verbs print: tables for people (see `text`), JSON for programs."""

from __future__ import annotations

import json
from typing import Any

from crumble.cli.text import age, clean, memory, short_id, size, table
from crumble_common.wire import pack_body

__all__ = ["age", "as_json", "clean", "memory", "short_id", "size", "table"]


def as_json(value: Any) -> None:
    """Prints a message, or a list of them, as JSON."""
    plain = [pack_body(item) for item in value] if isinstance(value, list) else pack_body(value)
    print(json.dumps(plain, indent=2, default=repr))
