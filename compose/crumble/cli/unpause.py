"""`crumble unpause VM...`."""

from __future__ import annotations

from crumble.cli.pause import tell


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    return tell("unpause", "Lets paused VMs go on.", arguments)
