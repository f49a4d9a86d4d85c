"""`crumble fork VM [-n N]`."""

from __future__ import annotations

import json

from crumble.cli import quick
from crumble.cli.parser import Parser
from crumble.cli.progress import Bars

# Many VMs on a slow machine take their time, s.
_LIMIT = 3600.0


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("fork", "Makes more VMs of a running one, which goes on from this moment, too.")
    parser.add_argument(
        "-n", "--count", type=int, default=1, metavar="N", help="how many (default: 1)"
    )
    parser.add_argument(
        "--name",
        default="",
        help="the new one's; several are NAME-1, NAME-2 ... (default: invented)",
    )
    parser.json()
    parser.add_argument("vm", metavar="VM")
    options = parser.parse_args(arguments)
    body = {"vm": options.vm, "count": options.count, "name": options.name, "detach": True}
    with Bars() as bars:
        made = quick.ask("client.fork", body, limit=_LIMIT, on_event=bars.frame)
    if options.json:
        print(json.dumps(made, indent=2))
    else:
        for vm in made["vms"]:
            print(vm["name"])
    return 0
