"""`crumble-netd`: a virtual network for any vhost-user front end, in passt's place.

    crumble-netd --socket-path /run/net.sock --publish 8080:80 --allow host:5432/tcp

It serves one front end and ends when that leaves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.listen import listen_at
from crumble_common.messages import net
from crumble_common.messages.net import NetConfig, NetPolicy
from crumble_common.publish import parse_forward
from crumble_common.service import service_main
from crumble_netd.service import NetdService

_CAPABILITIES = {"type": "net", "features": []}


def main(argv: Sequence[str] | None = None) -> int:
    """Under the supervisor without arguments, by flags with them; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        return service_main(NetdService)
    options = _parser().parse_args(arguments)
    if options.print_capabilities:
        print(json.dumps(_CAPABILITIES))  # noqa: T201  that is what the flag is for
        return 0
    fds: dict[str, int] = {}
    try:
        config = _config(options)
        if options.pcap:
            fds["capture"] = _open(options.pcap)
        fds["net"] = (
            options.fd if options.fd is not None else listen_at(options.socket_path).detach()
        )
    except CrumbleError as error:
        print(f"crumble-netd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return service_main(NetdService, config, fds=fds)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"Cannot write {path}: {error.strerror}.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crumble-netd", description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket-path", metavar="PATH", help="listen at this Unix socket")
    where.add_argument("--fd", type=int, metavar="N", help="a listening or connected socket")
    where.add_argument(
        "--print-capabilities", action="store_true", help="print what this back end is, as JSON"
    )
    add = parser.add_argument
    add("-p", "--publish", action="append", default=[], metavar="[IP:]HOST:GUEST[/udp]",
        help="forward a port of the host; may be repeated")  # fmt: skip
    add("--allow", action="append", default=[], metavar="RULE",
        help="let the guest talk to ADDRESS[/BITS], NAME, *.NAME, host or any, [:PORT[-PORT]][/tcp|/udp]")  # fmt: skip
    add("--deny", action="append", default=[], metavar="RULE", help="the reverse; it wins")
    add("--no-internet", action="store_true", help="nothing but what --allow names")
    add("--mac", default="", help="the guest's (default: that of its first frame)")
    add("--mtu", type=int, default=net.MTU, help=f"where the front end knows one ({net.MTU})")
    add("--name", default="", help="the guest is NAME.internal")
    add("--network", default=net.NETWORK, metavar="CIDR")
    add("--gateway", default=net.GATEWAY, metavar="ADDRESS")
    add("--host", default=net.HOST, metavar="ADDRESS", help="stands for the host: host.internal")
    add("--guest", default=net.GUEST, metavar="ADDRESS", help="what DHCP gives")
    add("--network6", default=net.NETWORK6, metavar="CIDR")
    add("--dns", action="append", default=[], metavar="ADDRESS[:PORT]",
        help="ask this DNS server (default: those of the host's resolv.conf)")  # fmt: skip
    add("--pcap", default="", metavar="FILE", help="capture the guest's packets")
    return parser


def _config(options: argparse.Namespace) -> NetConfig:
    return NetConfig(
        socket_fd="net",
        name=options.name,
        mac=options.mac,
        mtu=options.mtu,
        network=options.network,
        gateway=options.gateway,
        host=options.host,
        guest=options.guest,
        network6=options.network6,
        resolvers=options.dns,
        policy=NetPolicy(options.allow, options.deny, internet=not options.no_internet),
        forwards=[parse_forward(text) for text in options.publish],
        capture_fd="capture" if options.pcap else "",
    )


if __name__ == "__main__":
    sys.exit(main())
