"""The `crumble` command: finds the verb, and turns errors into one sentence and an exit status.

Exit status: what the verb says (for `run` and `exec`, the command's); 125 when Crumble failed, 126
when the command is not executable, 127 when it is not there, 124 after --timeout, 130 after ^C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from crumble_common.errors import CrumbleError

# Each verb is the module of that name beside this one, with `main(arguments) -> int`.
VERBS = {
    "run": "run a command in a new VM",
    "exec": "run a command in a VM that is running",
    "ps": "list VMs",
    "logs": "show what a VM printed",
    "stop": "stop VMs",
    "pause": "let VMs stand still",
    "unpause": "let paused VMs go on",
    "fork": "make more VMs of a running one",
    "commit": "make an image of a VM's files",
    "snapshot": "capture VMs; list, remove, check, export and import captured ones",
    "network": "make, list, inspect and remove networks that VMs share",
    "port": "list, add and remove the ports that lead to a VM",
    "net": "list a VM's flows and counters, capture its packets",
    "pull": "fetch an image",
    "images": "list images",
    "inspect": "show an image's or a VM's details",
    "rmi": "remove images",
    "save": "write an image to an OCI layout or a docker archive",
    "up": "run the supervisor, for VMs that outlive the command that made them",
    "down": "stop the supervisor and all its VMs",
    "debug": "connect gdb to a VM, or trace its instructions",
    "doctor": "show what this host can do, and why not the rest",
}
_ALIASES = {"export": "save", "resume": "unpause"}

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
_STATUS = {"exec.not_executable": NOT_EXECUTABLE, "exec.not_found": NOT_FOUND}


def entry() -> None:
    """The console script. What the interpreter would do to take itself apart takes longer than our own end."""
    import gc

    gc.disable()  # imports leave little to collect
    os._exit(finished())


def finished() -> int:
    """One command, with what it printed on its way; its exit status."""
    try:
        return main()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                pass


def main() -> int:
    """One command, to its exit status."""
    _open_streams()
    # ^C, too: a KeyboardInterrupt that passes through exec(), which dataclasses are made with, has the
    # interpreter end by the signal in spite of who caught it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _end)
    try:
        status = run_verb(sys.argv[1:])
        sys.stdout.flush()
        return status
    except CrumbleError as error:
        say(str(error))
        return _STATUS.get(error.code, FAILED)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter's own flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"{where}{error.strerror or error}. Check this machine's disk, memory and limits.")
        return FAILED
    except Exception as error:
        if os.environ.get("CRUMBLE_LOG") == "debug":
            raise
        say(f"Crumble has a bug: {error!r}. CRUMBLE_LOG=debug shows where.")
        return FAILED


def _open_streams() -> None:
    """Has something where our caller closed stdin, stdout or stderr; else a socket would get there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(fd, True)
            assert fd == number
            setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115


def say(text: str) -> None:
    """One line on stderr, for a person."""
    try:
        print(f"crumble: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass


def run_verb(arguments: Sequence[str]) -> int:
    """Runs the verb that the arguments begin with."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else FAILED
    if arguments[0] in ("-V", "--version", "version"):
        from crumble_common import __version__

        print(f"crumble {__version__}")
        return 0
    verb = _ALIASES.get(arguments[0], arguments[0])
    if verb not in VERBS:
        say(f"There is no verb {verb!r}. `crumble --help` lists them.")
        return FAILED
    import importlib

    module = importlib.import_module(f"crumble.cli.{verb}")
    status: int = module.main(list(arguments[1:]))
    return status


def _end(number: int, _frame: object) -> None:
    """Ends through every cleanup."""
    raise SystemExit(128 + number)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {text}" for verb, text in VERBS.items())
    return (
        "usage: crumble VERB [ARGUMENTS]\n\n"
        "Runs commands from OCI images, each in a virtual machine of its own.\n\n"
        f"{verbs}\n\n"
        "`crumble VERB --help` explains a verb. Try: crumble run deb:trixie uname -a"
    )


if __name__ == "__main__":
    sys.exit(main())
