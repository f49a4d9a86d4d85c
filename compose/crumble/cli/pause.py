"""`crumble pause VM...`."""

from __future__ import annotations

from crumble.cli import quick
from crumble.cli.main import FAILED, say
from crumble.cli.parser import Parser
from crumble_common.errors import CrumbleError


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    return tell(
        "pause", "Lets VMs stand still: they use no CPU until `crumble unpause`.", arguments
    )


def tell(verb: str, description: str, arguments: list[str]) -> int:
    """Pauses or unpauses; prints the names of those that were."""
    parser = Parser(verb, description)
    parser.add_argument("vms", metavar="VM", nargs="+")
    options = parser.parse_args(arguments)
    kind = "vm.pause" if verb == "pause" else "vm.resume"
    status = 0
    for name in options.vms:
        try:
            quick.ask(kind, {}, to=f"vm:{name}")
            print(name)
        except CrumbleError as error:
            say(str(error))
            status = FAILED
    return status
