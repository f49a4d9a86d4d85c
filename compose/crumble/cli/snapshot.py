"""`crumble snapshot ls|inspect|rm|prune|verify|export|import|create`.

All but `create` work on the store itself, with or without a supervisor.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crumble.cli import output
from crumble.cli.main import FAILED, say
from crumble.cli.parser import Parser
from crumble.cli.progress import Bars
from crumble.snapshots.store import Found, Store
from crumble_common.errors import CrumbleError

_EPILOG = """\
  create VM NAME            capture a VM that goes on running; see `crumble run --from NAME`
  ls                        list snapshots; those named boot-* are made by `crumble run` itself
  inspect NAME              show what one is, as JSON
  rm NAME...                remove snapshots
  prune [--all]             remove boot snapshots that nobody uses; with --all, all of them
  verify [NAME...]          look at every byte of these, or of all
  export NAME FILE          write one, with its image's layers, to a file
  import FILE [--name N]    take one in"""


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("snapshot", "Captured VMs.", _EPILOG)
    parser.usage = "crumble snapshot COMMAND [ARGUMENTS]"
    parser.add_argument("command", metavar="COMMAND", choices=sorted(_COMMANDS))
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    store = Store()
    store.sweep()
    return _COMMANDS[options.command](store, options.arguments)


def _create(_store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot create", "Captures a VM, which goes on running.")
    parser.json()
    parser.add_argument("vm", metavar="VM")
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    from crumble.cli import quick

    body = {"vm": options.vm, "name": options.name}
    with Bars() as bars:
        made = quick.ask("client.snapshot.create", body, limit=600, on_event=bars.frame)
    print(json.dumps(made, indent=2) if options.json else made["name"])
    return 0


def _ls(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot ls", "Lists snapshots, the last used first.")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.json()
    options = parser.parse_args(arguments)
    found = store.found()
    if options.json:
        print(json.dumps([_described(item) for item in found], indent=2))
    elif options.quiet:
        for item in found:
            print(item.name)
    else:
        head = ("NAME", "IMAGE", "CREATED", "USED", "CPUS", "MEMORY", "SIZE")
        output.table(head, [_row(item) for item in found])
    return 0


def _row(item: Found) -> tuple[str, ...]:
    size = output.size(item.size)
    about = item.manifest
    if about is None:
        return (item.name, item.problem, "", output.age(item.used), "", "", size)
    when = (output.age(about.created), output.age(item.used))
    return (
        item.name,
        about.image.reference,
        *when,
        str(about.cpus),
        output.memory(about.memory),
        size,
    )


def _described(item: Found) -> dict[str, Any]:
    from crumble.snapshots.manifest import plain

    about = plain(item.manifest) if item.manifest else {}
    used = {"name": item.name, "used": item.used, "size_on_disk": item.size}
    return {**about, **used, **({"problem": item.problem} if item.problem else {})}


def _inspect(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot inspect", "Shows what a snapshot is, as JSON.")
    parser.json()
    parser.add_argument("name", metavar="NAME")
    name = store.full_name(parser.parse_args(arguments).name)
    store.open(name).close()
    print(json.dumps(_described(next(i for i in store.found() if i.name == name)), indent=2))
    return 0


def _rm(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot rm", "Removes snapshots that no VM uses.")
    parser.add_argument("names", metavar="NAME", nargs="+")

    def remove(name: str) -> None:
        store.remove(name)
        print(name)

    return _each(parser.parse_args(arguments).names, store, remove)


def _prune(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot prune", "Removes boot snapshots that no VM uses.")
    parser.add_argument("-a", "--all", action="store_true", help="those made by hand, too")
    options = parser.parse_args(arguments)
    freed = 0
    for name in store.names():
        if options.all or name.startswith("boot-"):
            try:
                freed += store.remove(name)
                print(name)
            except CrumbleError as error:
                if error.code not in ("snapshot.in_use", "snapshot.unknown"):
                    raise
    print(f"{output.size(freed)} freed")
    return 0


def _verify(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot verify", "Looks at every byte of snapshots.")
    parser.add_argument("names", metavar="NAME", nargs="*")
    names = parser.parse_args(arguments).names or store.names()
    from crumble.snapshots.verify import verify

    def check(name: str) -> None:
        snapshot = store.open(name)
        try:
            with Bars() as bars:
                verify(snapshot, bars.tell)
        finally:
            snapshot.close()
        print(f"{name}: whole")

    return _each(names, store, check)


def _export(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot export", "Writes a snapshot, with its image's layers, to a file.")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("file", metavar="FILE")
    options = parser.parse_args(arguments)
    from crumble.snapshots import archive

    snapshot = store.open(store.full_name(options.name))
    try:
        with Bars() as bars:
            archive.export(snapshot, Path(options.file).absolute(), bars.tell)
    finally:
        snapshot.close()
    print(options.file)
    return 0


def _import(store: Store, arguments: list[str]) -> int:
    parser = Parser("snapshot import", "Takes in a snapshot that was exported.")
    parser.add_argument("--name", default="", help="another name than it had")
    parser.add_argument("file", metavar="FILE")
    options = parser.parse_args(arguments)
    from crumble.snapshots import archive

    with Bars() as bars:
        made = archive.import_file(store, Path(options.file), options.name, bars.tell)
    print(made.name)
    return 0


def _each(names: list[str], store: Store, do: Callable[[str], None]) -> int:
    """Does it for each; the others are done when one cannot be."""
    status = 0
    for name in names:
        try:
            do(store.full_name(name))
        except CrumbleError as error:
            say(str(error))
            status = FAILED
    return status


_COMMANDS: dict[str, Callable[[Store, list[str]], int]] = {
    "create": _create,
    "ls": _ls,
    "inspect": _inspect,
    "rm": _rm,
    "prune": _prune,
    "verify": _verify,
    "export": _export,
    "import": _import,
}
