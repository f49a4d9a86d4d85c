"""`crumble ps`. Answers at once: see `quick`."""

from __future__ import annotations

from crumble.cli import quick
from crumble.cli.parser import Parser
from crumble_common.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEAD = ("NAME", "IMAGE", "STATE", "CREATED", "CPUS", "MEMORY")


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("ps", "Lists the VMs of the supervisor.")
    parser.add_argument("-a", "--all", action="store_true", help="also those that ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.json()
    options = parser.parse_args(arguments)
    vms = _list(options.all)
    if options.json:
        import json

        print(json.dumps(vms, indent=2))
    elif options.quiet:
        for vm in vms:
            print(vm["name"])
    else:
        _table(vms)
    return 0


def _list(everything: bool) -> list[dict[str, Any]]:
    try:
        vms: list[dict[str, Any]] = quick.ask("client.vm.list", {"all": everything})["vms"]
    except UsageError as error:
        if error.code != "up.none":
            raise
        return []
    return vms


def _table(vms: list[dict[str, Any]]) -> None:
    from crumble.cli import text

    text.table(_HEAD, [_row(vm) for vm in vms])


def _row(vm: dict[str, Any]) -> tuple[str, ...]:
    from crumble.cli import text

    state = f"{vm['state']}: {vm['detail']}" if vm["detail"] else vm["state"]
    cells = (vm["name"], vm["image"], state, text.age(vm["created"]), str(vm["cpus"]))
    return (*cells, text.memory(vm["memory"]))
