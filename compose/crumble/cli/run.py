"""`crumble run IMAGE [CMD...]`."""

from __future__ import annotations

from crumble.cli import run_options
from crumble.cli.held import Held
from crumble.supervisor.locate import find_daemon


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = run_options.run_parser()
    options = parser.parse_args(arguments)
    run_options.settle(parser, options)
    ground = None
    try:
        if not options.detach and not find_daemon():
            from crumble.supervisor.ground import Ground

            with Held():
                ground = Ground(fork=True)
        from crumble.cli.run_vm import run  # while the forkserver imports, too

        return run(options, ground)
    finally:
        if ground is not None:
            ground.close()
