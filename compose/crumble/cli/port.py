"""`crumble port VM`: the forwards of a VM, listed, added and removed while it runs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from crumble.cli import quick
from crumble.cli.main import FAILED
from crumble.cli.parser import Parser
from crumble_common.publish import parse_forward

_EPILOG = """\
  crumble port VM                 list: 80/tcp -> 127.0.0.1:8080
  crumble port VM 80[/udp]        where this port of the VM is reached
  crumble port VM add PORTS...    forward [IP:]HOST:GUEST[/udp] from now on
  crumble port VM rm PORTS...     no longer; what came through it goes on"""


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("port", "The ports of the host that lead to a VM.", _EPILOG)
    parser.usage = "crumble port VM [PORT[/PROTOCOL] | add PORTS... | rm PORTS...]"
    parser.json()
    parser.add_argument("vm", metavar="VM")
    parser.add_argument("words", metavar="WORDS", nargs="*")
    options = parser.parse_args(arguments)
    target, words = f"vm:{options.vm}", options.words
    if words[:1] in (["add"], ["rm"]):
        if len(words) < 2:
            parser.error("the ports are missing")
        kind = "net.forward.add" if words[0] == "add" else "net.forward.remove"
        for forward in [parse_forward(text) for text in words[1:]]:
            quick.ask(kind, {"forward": dataclasses.asdict(forward), "guest": ""}, target)
        return 0
    if len(words) > 1:
        parser.error("one port, or add, or rm")
    found = quick.ask("net.inspect", {"guest": ""}, target)["forwards"]
    shown = [forward for forward in found if not words or _matches(forward, words[0])]
    if options.json:
        print(json.dumps(shown, indent=2))
    else:
        for forward in shown:
            where = f"[{forward['host']}]" if ":" in forward["host"] else forward["host"]
            what = f"{forward['guest_port']}/{forward['protocol']} -> "
            print(f"{'' if words else what}{where}:{forward['host_port']}")
    return FAILED if words and not shown else 0


def _matches(forward: dict[str, Any], text: str) -> bool:
    port, _, protocol = text.partition("/")
    return str(forward["guest_port"]) == port and forward["protocol"] == (protocol or "tcp")
