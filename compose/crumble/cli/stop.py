"""`crumble stop VM...`."""

from __future__ import annotations

from crumble.cli.link import Link
from crumble.cli.main import FAILED, say
from crumble.cli.parser import Parser
from crumble_common.errors import CrumbleError
from crumble_common.messages import client as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("stop", "Stops VMs, and forgets those that have ended.")
    parser.add_argument(
        "-t", "--time", type=float, default=10.0, metavar="S",
        help="seconds it may take before it is ended by force (default: 10)",
    )  # fmt: skip
    parser.add_argument("vms", metavar="VM", nargs="+")
    options = parser.parse_args(arguments)
    status = 0
    with Link(own=False) as link:
        for name in options.vms:
            try:
                link.call(messages.VmStop(name, max(0.0, options.time)))
                print(name)
            except CrumbleError as error:
                say(str(error))
                status = FAILED
    return status
