"""`crumble logs VM`."""

from __future__ import annotations

import sys
from typing import Any

from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble_common.errors import CrumbleError
from crumble_common.messages import client as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("logs", "Shows what a VM's console and its main command printed.")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the VM ends")
    parser.add_argument("-n", "--tail", type=int, default=0, metavar="N", help="the last N lines")
    parser.add_argument("vm", metavar="VM")
    options = parser.parse_args(arguments)
    with Link(own=False) as link:
        follower = _Follower()
        link.client.listen_all(follower.event)
        request = messages.VmLogs(options.vm, options.follow, max(0, options.tail))
        follower.event(link.call(request, deadline=30))
        while not follower.ended:
            link.loop.step()
    return 0


class _Follower:
    """Prints log data as it comes."""

    def __init__(self) -> None:
        self.ended = False

    def event(self, event: Any) -> None:
        if isinstance(event, CrumbleError):
            raise event
        if isinstance(event, messages.LogData):
            sys.stdout.buffer.write(event.data)
            sys.stdout.flush()
            self.ended |= event.eof
