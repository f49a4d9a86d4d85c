"""`crumble exec VM CMD...`."""

from __future__ import annotations

import argparse

from crumble.cli import run_options, terminal
from crumble.cli.attach import Attached, status_of
from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble_common.messages.vm import ProcessStart


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("exec", "Runs a command in a VM that is running.")
    run_options.process_options(parser)
    parser.add_argument("vm", metavar="VM", help="its name, or the start of its id")
    parser.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER).required = False
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("the command is missing")
    with Link(own=False) as link:
        return _attach(link, options)


def _attach(link: Link, options: argparse.Namespace) -> int:
    target = f"vm:{options.vm}"
    attached = Attached(link, target, _process(options))
    # The supervisor names the VM in full, also when we gave the start of its id.
    link.client.listen_all(attached.event)
    if options.timeout:
        attached.limit(options.timeout)
    return status_of(attached.run)


def _process(options: argparse.Namespace) -> ProcessStart:
    rows, cols = terminal.size(1)
    return ProcessStart(
        argv=options.command,
        env=run_options.environment(options),
        cwd=options.workdir,
        user=options.user,
        tty=options.tty,
        rows=rows,
        cols=cols,
        stdin=options.interactive,
    )
