"""`crumble down`."""

from __future__ import annotations

from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble_common.errors import UsageError
from crumble_common.messages import client as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("down", "Stops the supervisor and all its VMs.")
    parser.add_argument(
        "-t", "--time", type=float, default=10.0, metavar="S",
        help="seconds VMs may take before they are ended by force (default: 10)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    ended: list[object] = []
    try:
        with Link(own=False) as link:
            link.client.listen("", ended.append)
            link.call(messages.Down(max(0.0, options.time)), deadline=10)
            # The lease is closed when the supervisor has ended.
            while not ended:
                link.loop.step()
    except UsageError as error:
        if error.code != "up.none":
            raise
        print("No supervisor is running.")
    return 0
