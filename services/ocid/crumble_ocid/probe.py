"""What `crumble doctor` asks: where Debian packages come from on this host."""

from __future__ import annotations

import json
import sys

from crumble_common.errors import CrumbleError
from crumble_ocid.debian.sources import find_sources

_SUITE = "trixie"


def main() -> int:
    """Prints {"mirror": address} or {"problem": sentence}."""
    try:
        found = {"mirror": find_sources(_SUITE)[0].uri}
    except CrumbleError as error:
        found = {"problem": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0
