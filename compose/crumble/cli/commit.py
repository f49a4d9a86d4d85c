"""`crumble commit VM IMAGE`."""

from __future__ import annotations

from crumble.cli import output
from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble.cli.progress import Bars
from crumble_common.messages import client as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("commit", "Makes an image of what a VM's files are now.")
    parser.add_argument(
        "-x", "--exclude", action="append", default=[], metavar="PATH", help="leave this out"
    )
    parser.add_argument("-m", "--message", default="", metavar="TEXT", help="for its history")
    parser.json()
    parser.add_argument("vm", metavar="VM")
    parser.add_argument("image", metavar="IMAGE", help="what to call it: NAME[:TAG]")
    options = parser.parse_args(arguments)
    request = messages.Commit(
        options.vm, options.image, excludes=options.exclude, comment=options.message
    )
    with Link(own=False) as link, Bars() as bars:
        link.client.listen("images", bars.event)
        made = link.call(request)
    if options.json:
        output.as_json(made)
    else:
        print(made.id)
    return 0
