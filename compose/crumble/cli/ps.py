"""`crumble ps`."""

from __future__ import annotations

from crumble.cli import output
from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble_common.errors import UsageError
from crumble_common.messages import client as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("ps", "Lists the VMs of the supervisor.")
    parser.add_argument("-a", "--all", action="store_true", help="also those that ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.json()
    options = parser.parse_args(arguments)
    vms = _list(options.all)
    if options.json:
        output.as_json(vms)
    elif options.quiet:
        for vm in vms:
            print(vm.name)
    else:
        output.table(
            ("NAME", "IMAGE", "STATE", "CREATED", "CPUS", "MEMORY"), [_row(vm) for vm in vms]
        )
    return 0


def _list(everything: bool) -> list[messages.VmInfo]:
    try:
        with Link(own=False) as link:
            found: messages.VmInfos = link.call(messages.VmList(everything), deadline=10)
    except UsageError as error:
        if error.code != "up.none":
            raise
        return []
    return found.vms


def _row(vm: messages.VmInfo) -> tuple[str, ...]:
    state = f"{vm.state}: {vm.detail}" if vm.detail else vm.state
    cells = (vm.name, vm.image, state, output.age(vm.created), str(vm.cpus))
    return (*cells, output.memory(vm.memory))
