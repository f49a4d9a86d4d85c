"""`crumble logs VM`."""

from __future__ import annotations

import sys
from typing import Any

from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble.sdk.client import Client
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
        follower = Follower(link.client)
        follower.start(messages.VmLogs(options.vm, options.follow, max(0, options.tail)))
        while not follower.ended:
            link.loop.step()
    return 0


class Follower:
    """Prints log data as it comes: first the answer, what was printed until now, then what is new."""

    def __init__(self, client: Client) -> None:
        self.ended = False
        self._client = client

    def start(self, request: messages.VmLogs) -> None:
        """Asks. The answer is an event like others: what follows it may come in the same round."""
        self._client.listen_all(self.event)
        self._client.request(request, lambda body, error: self.event(error or body), deadline=30)

    def event(self, event: Any) -> None:
        """Prints; raises an error."""
        if isinstance(event, CrumbleError):
            raise event
        if isinstance(event, messages.LogData):
            sys.stdout.buffer.write(event.data)
            sys.stdout.flush()
            self.ended |= event.eof
