"""`crumble network create|ls|rm|inspect|connect|disconnect`: networks that VMs share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from crumble.cli import output, quick
from crumble.cli.main import FAILED, say
from crumble.cli.parser import Parser
from crumble.networks.store import Definition, NetworkStore
from crumble_common.errors import CrumbleError, UsageError

_EPILOG = """\
  create NAME [--subnet CIDR] [--internal]   make one; `crumble run --network NAME` puts a VM on it
  ls                                         list them
  inspect NAME                               show one, who is on it and what went through, as JSON
  connect NAME VM                            move a running VM to it ("user": a network of its own)
  disconnect NAME VM                         take a running VM off it
  rm NAME...                                 remove networks that nobody is on"""
_CONNECT = """\
A VM has one interface, which is on one network at a time: connecting moves it, unlike docker's, which
adds an interface. Its link goes down and up, its agent sets the address that it has there; connections that it has
open end. Port forwards, --allow and --deny rules, rates and what it may reach of the host go along. Packet
captures end, and what a name rule had learnt is asked for anew."""


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser(
        "network", "Networks that VMs share: they reach each other as NAME.internal.", _EPILOG
    )
    parser.usage = "crumble network COMMAND [ARGUMENTS]"
    parser.add_argument("command", metavar="COMMAND", choices=sorted(_COMMANDS))
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    return _COMMANDS[options.command](options.arguments)


def _create(arguments: list[str]) -> int:
    parser = Parser("network create", "Makes a network.")
    parser.add_argument(
        "--subnet", default="", metavar="CIDR", help="of IPv4 (default: a free one)"
    )
    parser.add_argument("--internal", action="store_true", help="nobody on it reaches the internet")
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    made = NetworkStore().create(options.name, options.subnet, internet=not options.internal)
    print(made.name)
    return 0


def _ls(arguments: list[str]) -> int:
    parser = Parser("network ls", "Lists networks.")
    parser.add_argument("-q", "--quiet", action="store_true", help="names only")
    parser.json()
    options = parser.parse_args(arguments)
    store = NetworkStore()
    if options.quiet:
        for name in store.names():
            print(name)
        return 0
    found = [_found(store, name) for name in store.names()]
    if options.json:
        print(json.dumps([{"name": name, **_shown(item)} for name, item in found], indent=2))
    else:
        rows = [(name, *(_cells(item))) for name, item in found]
        output.table(("NAME", "SUBNET", "SUBNET6", "INTERNET"), rows)
    return 0


def _found(store: NetworkStore, name: str) -> tuple[str, Definition | CrumbleError]:
    try:
        return name, store.get(name)
    except CrumbleError as error:
        return name, error


def _cells(item: Definition | CrumbleError) -> tuple[str, ...]:
    if isinstance(item, CrumbleError):
        return item.message, "", ""
    return item.subnet, item.subnet6, "yes" if item.internet else "no"


def _shown(item: Definition | CrumbleError) -> dict[str, Any]:
    if isinstance(item, CrumbleError):
        return {"problem": item.message}
    return {
        "subnet": item.subnet,
        "subnet6": item.subnet6,
        "gateway": item.gateway,
        "host": item.host,
        "internet": item.internet,
        "created": item.created,
        "leases": item.leases,
    }


def _rm(arguments: list[str]) -> int:
    parser = Parser("network rm", "Removes networks that nobody is on.")
    parser.add_argument("names", metavar="NAME", nargs="+")
    options = parser.parse_args(arguments)
    status = 0
    for name in options.names:
        try:
            _remove(name)
            print(name)
        except CrumbleError as error:
            say(str(error))
            status = FAILED
    return status


def _remove(name: str) -> None:
    """The daemon knows who is on it; without one, nobody of ours is."""
    try:
        quick.ask("client.network.remove", {"name": name})
    except UsageError as error:
        if error.code != "up.none":
            raise
        NetworkStore().remove(name)


def _inspect(arguments: list[str]) -> int:
    parser = Parser("network inspect", "Shows a network, as JSON.")
    parser.json()
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    found = NetworkStore().get(options.name)
    print(json.dumps({"name": found.name, **_shown(found), **_now(options.name)}, indent=2))
    return 0


def _connect(arguments: list[str]) -> int:
    return _move("connect", "Moves a running VM to a network.", _CONNECT, arguments)


def _disconnect(arguments: list[str]) -> int:
    about = "The VM stays without a network, its link down, until `crumble network connect`."
    return _move("disconnect", "Takes a running VM off its network.", about, arguments)


def _move(verb: str, what: str, about: str, arguments: list[str]) -> int:
    parser = Parser(f"network {verb}", what, about)
    parser.json()
    parser.add_argument("network", metavar="NETWORK", help="its name, or user")
    parser.add_argument("vm", metavar="VM")
    options = parser.parse_args(arguments)
    body = {"network": options.network, "vm": options.vm}
    now = quick.ask(f"client.network.{verb}", body)
    if options.json:
        print(json.dumps({name: now[name] for name in ("name", "network", "address")}, indent=2))
    return 0


def _now(name: str) -> dict[str, Any]:
    try:
        return quick.ask("client.network.inspect", {"name": name})
    except UsageError as error:
        if error.code != "up.none":
            raise
        return {}


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "create": _create,
    "ls": _ls,
    "rm": _rm,
    "inspect": _inspect,
    "connect": _connect,
    "disconnect": _disconnect,
}
