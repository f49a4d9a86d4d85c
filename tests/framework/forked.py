"""What the forkserver's tests fork."""

from __future__ import annotations

import json
import os
import sys


def writes() -> int:
    given = json.loads(os.environ["CRUMBLE_FDS"])
    os.write(given["out"], os.environ["FORKED"].encode())
    print("to stderr", file=sys.stderr)
    return 3


def waits() -> int:
    os.read(int(os.environ["CRUMBLE_LIFELINE"]), 1)
    return 0
