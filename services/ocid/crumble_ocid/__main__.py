"""`crumble-ocid`: an image tool of its own, and, without arguments, the service."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Under the supervisor without arguments, by command line with them; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        from crumble_common.service import service_main
        from crumble_ocid.service import OcidService

        return service_main(OcidService)
    if list(arguments) == ["--probe"]:
        from crumble_ocid.probe import main as probe

        return probe()
    from crumble_ocid.cli import run

    return run(list(arguments))


if __name__ == "__main__":
    sys.exit(main())
