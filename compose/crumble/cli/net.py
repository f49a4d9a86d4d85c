"""`crumble net flows|refused|stats|capture VM`: what goes through a VM's network."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crumble.cli import output, quick
from crumble.cli.parser import Parser
from crumble_common.errors import UsageError

_EPILOG = """\
  flows VM                            list its connections and other flows
  refused VM                          list the last flows that its rules refused
  stats VM                            show its counters, what was dropped and why among them
  capture VM FILE [--snaplen N]       capture its packets to a file or named pipe, in the background
  capture VM - [--snaplen N]          to stdout, until ^C: crumble net capture VM - | tcpdump -r -
  capture VM --stop                   end a capture"""
_CHUNK = 1 << 16


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("net", "What goes through a VM's network.", _EPILOG)
    parser.usage = "crumble net COMMAND [ARGUMENTS]"
    parser.add_argument("command", metavar="COMMAND", choices=sorted(_COMMANDS))
    parser.add_argument("arguments", metavar="ARGUMENTS", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    return _COMMANDS[options.command](options.arguments)


def _state(vm: str) -> dict[str, Any]:
    return quick.ask("net.inspect", {"guest": ""}, f"vm:{vm}")


def _flows(arguments: list[str]) -> int:
    parser = Parser("net flows", "Lists a VM's connections and other flows.")
    parser.json()
    parser.add_argument("vm", metavar="VM")
    options = parser.parse_args(arguments)
    flows = _state(options.vm)["flows"]
    if options.json:
        print(json.dumps(flows, indent=2))
        return 0
    head = ("PROTOCOL", "GUEST", "REMOTE", "STATE", "SENT", "RECEIVED", "AGE")
    output.table(head, [_row(flow) for flow in flows])
    return 0


def _row(flow: dict[str, Any]) -> tuple[str, ...]:
    ends = (flow["protocol"], flow["guest"], flow["remote"], flow["state"])
    sizes = (output.size(flow["sent"]), output.size(flow["received"]))
    return (*ends, *sizes, f"{flow['seconds']:.0f} s")


def _stats(arguments: list[str]) -> int:
    parser = Parser("net stats", "Shows a VM's counters.")
    parser.json()
    parser.add_argument("vm", metavar="VM")
    options = parser.parse_args(arguments)
    counters = {
        name: count
        for guest in _state(options.vm)["guests"]
        for name, count in sorted(guest["counters"].items())
    }
    if options.json:
        print(json.dumps(counters, indent=2))
    else:
        output.table(("COUNTER", "VALUE"), [(name, str(n)) for name, n in counters.items()])
    return 0


def _capture(arguments: list[str]) -> int:
    parser = Parser("net capture", "Captures a VM's packets, in the pcap format.")
    parser.add_argument(
        "--snaplen", type=int, default=262_144, metavar="N", help="bytes of each frame"
    )
    parser.add_argument("--stop", action="store_true", help="end it")
    parser.add_argument("vm", metavar="VM")
    parser.add_argument("file", metavar="FILE", nargs="?", default="")
    options = parser.parse_args(arguments)
    if options.stop:
        done = quick.ask("net.capture.stop", {"guest": ""}, f"vm:{options.vm}")
        print(f"{done['frames']} frames, {done['lost']} lost", file=sys.stderr)
        return 0
    if not options.file:
        parser.error("the file is missing")
    if not 0 < options.snaplen <= 262_144:
        parser.error("--snaplen is from 1 to 262144")
    if options.file == "-":
        _to_stdout(options.vm, options.snaplen)
    else:
        _begin(options.vm, str(Path(options.file).absolute()), options.snaplen)
    return 0


def _begin(vm: str, path: str, snaplen: int) -> None:
    body = {"path": path, "snaplen": snaplen, "guest": ""}
    quick.ask("client.net.capture", body, f"vm:{vm}")


def _to_stdout(vm: str, snaplen: int) -> None:
    """Through a pipe that has a name only until both ends are open."""
    if sys.stdout.isatty():
        raise UsageError(
            "A capture is not for a terminal.", code="usage.capture", hint="Pipe it to a program."
        )
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/pipe"
        os.mkfifo(path, 0o600)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        _begin(vm, path, snaplen)
    os.set_blocking(reader, True)
    try:
        while data := os.read(reader, _CHUNK):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    finally:
        os.close(reader)
        with contextlib.suppress(Exception):  # the VM, or the capture, may have ended
            quick.ask("net.capture.stop", {"guest": ""}, f"vm:{vm}")


def _refused(arguments: list[str]) -> int:
    parser = Parser("net refused", "Lists the last flows of a VM that its rules refused.")
    parser.json()
    parser.add_argument("vm", metavar="VM")
    options = parser.parse_args(arguments)
    found = [flow for guest in _state(options.vm)["guests"] for flow in guest["refused"]]
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [
        (
            output.age(flow["when"]),
            flow["protocol"],
            flow["address"],
            str(flow["port"]),
            " ".join(flow["names"]),
        )
        for flow in found
    ]
    output.table(("WHEN", "PROTOCOL", "ADDRESS", "PORT", "NAMES"), rows)
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "flows": _flows,
    "stats": _stats,
    "refused": _refused,
    "capture": _capture,
}
