"""The options of `crumble run`, and those it shares with `exec`."""

from __future__ import annotations

import argparse
import os

from crumble.cli.parser import Parser
from crumble_common.errors import UsageError
from crumble_common.hypervisors import CPU_MODELS
from crumble_common.lockstep import DEFAULT_SEED

_EPILOG = """\
IMAGE is NAME[:TAG][@DIGEST] in a registry, oci:DIR[:TAG], docker-archive:FILE, or deb:SUITE[/PKG,...].
The exit status is the command's; 124 after --timeout, 125 when Crumble failed, 126 when the command
is not executable, 127 when it is not in the image, 130 after ^C."""


def run_parser() -> Parser:
    """The parser of `crumble run`."""
    parser = Parser("run", "Boots a VM around an image and runs a command in it.", _EPILOG)
    parser.usage = "crumble run [OPTIONS] IMAGE [CMD...]"
    process_options(parser)
    add = parser.add_argument
    add("--entrypoint", metavar="WORD", help="instead of the image's ENTRYPOINT; drops its CMD")
    add(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="HOST:GUEST[:ro]",
        help="share a path",
    )
    add("--name", default="", help="the VM's name (default: invented)")
    add(
        "--hostname",
        default="",
        metavar="NAME",
        help="the guest's host name (default: the VM's name)",
    )
    add("-d", "--detach", action="store_true", help="leave it running under `crumble up`")
    add("--systemd", choices=("auto", "always", "never"), default="auto", metavar="WHEN",
        help="make it PID 1: auto (default, what is an init), always or never")  # fmt: skip
    add("--rm", action="store_true", help=argparse.SUPPRESS)  # an attached VM always is
    add("-m", "--memory", default="512m", metavar="SIZE", help="guest memory (default: 512m)")
    add("-c", "--cpus", type=int, default=1, metavar="N", help="virtual CPUs (default: 1)")
    add("--pull", choices=("missing", "always", "never"), default="missing", metavar="WHEN",
        help="fetch it if missing (default), always or never")  # fmt: skip
    add("--kernel", default="", metavar="FILE", help="boot this kernel")
    add("--boot-timeout", type=_seconds, default=120.0, metavar="S", help="for its kernel and init")
    add("--cmdline", default="", metavar="WORDS", help="append to the kernel's command line")
    add("--hv", choices=("auto", "soft", "kvm"), default="auto", help="back end (default: auto)")
    add("--transport", choices=("mmio", "pci"), default="mmio",
        help="of its devices (default: mmio)")  # fmt: skip
    add("--watchdog", action="store_true",
        help="a /dev/watchdog in the guest, which ends it when nobody feeds it")  # fmt: skip
    # On KVM on x86_64: the IOAPIC is ours or the kernel's. Few want to know (services/vmm/README.md).
    add("--irqchip", choices=("split", "kernel"), default="split", help=argparse.SUPPRESS)
    add("--cpu-model", choices=CPU_MODELS, default="host", metavar="LEVEL",
        help="on KVM: host (default) or x86-64-v2, -v3, -v4, which others have too")  # fmt: skip
    add(
        "--from",
        dest="snapshot",
        default="",
        metavar="SNAPSHOT",
        help="go on from it; no IMAGE then",
    )
    add("--no-snapshot", action="store_true", help="boot, whether or not that was captured before")
    add(
        "--network",
        default="",
        metavar="user|none|NAME",
        help="the host's (default), none, or a shared one",
    )
    add("-p", "--publish", action="append", default=[], metavar="PORTS",
        help="forward a port: [IP:]HOST:GUEST[/udp]")  # fmt: skip
    add("--allow", action="append", default=[], metavar="RULE",
        help="let it reach ADDRESS[/BITS], [*.]NAME, host or any [:PORT][/tcp]")  # fmt: skip
    add("--deny", action="append", default=[], metavar="RULE", help="the reverse; wins")
    add("--no-internet", action="store_true", help="nothing but what --allow names")
    add("--rate-out", default="0", metavar="SIZE", help="bytes a second it may send")
    add("--rate-in", default="0", metavar="SIZE", help="bytes a second it may get")
    add("--rate-flows", type=int, default=0, metavar="N", help="connections a second it may begin")
    add("--pcap", default="", metavar="FILE", help="capture the guest's packets")
    add("--dmesg", action="store_true", help="show the guest kernel's messages on stderr")
    add("--deterministic", action="store_true",
        help="same to the bit each time (or --seed WORD): one CPU, no network")  # fmt: skip
    add("--seed", default="", metavar="WORD", help=argparse.SUPPRESS)
    add("--digest", action="store_true",
        help="show what a deterministic guest was in the end, on stderr")  # fmt: skip
    add("--record", default="", metavar="FILE",
        help="of a deterministic guest: all that reaches it from outside")  # fmt: skip
    add("--replay", default="", metavar="FILE", help="the run of that recording again")
    add("--timeline", action="store_true", help="show where the time went on stderr")
    add("image", metavar="IMAGE", nargs="?", default="", help=argparse.SUPPRESS)
    # argparse calls it required.
    command = add("command", metavar="CMD", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command.required = False
    return parser


def settle(parser: Parser, options: argparse.Namespace) -> None:
    """With --from, the first word is the command's."""
    if options.snapshot:
        options.command = [options.image, *options.command] if options.image else []
        options.image = ""
    elif not options.image:
        parser.error("the image is missing")
    special = options.seed or options.digest or options.record or options.replay
    if special and not options.deterministic:
        parser.error("--seed, --digest, --record and --replay are for --deterministic")
    if options.deterministic:
        options.seed = options.seed or DEFAULT_SEED
    options.network = options.network or ("none" if options.deterministic else "user")


def process_options(parser: Parser) -> None:
    """The options of a process in a guest."""
    add = parser.add_argument
    add("-e", "--env", action="append", default=[], metavar="KEY[=VALUE]", help="set a variable")
    add("--env-file", action="append", default=[], metavar="FILE", help="set variables from a file")
    add("-w", "--workdir", default="", metavar="DIR", help="working directory")
    add("-u", "--user", default="", metavar="USER[:GROUP]", help="user, by name or number")
    add("-i", "--interactive", action="store_true", help="pass stdin on")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("--timeout", type=_seconds, default=0.0, metavar="S", help="end it after so many seconds")


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The variables that -e and --env-file name; KEY alone takes ours, and is left out when unset. With -t, TERM, too."""
    found: dict[str, str] = {}
    for path in options.env_file:
        for line in _lines(path):
            _add(found, line)
    for text in options.env:
        _add(found, text)
    if options.tty and "TERM" in os.environ:
        found.setdefault("TERM", os.environ["TERM"])
    return found


def _add(found: dict[str, str], text: str) -> None:
    name, separator, value = text.partition("=")
    if not name or "\0" in text:
        raise UsageError(f"{text!r} is no variable.", code="usage.env", hint="Write KEY=VALUE.")
    if separator:
        found[name] = value
    elif name in os.environ:
        found[name] = os.environ[name]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UsageError(
            f"Cannot read {path}: {why}.",
            code="usage.env_file",
            hint="--env-file takes a file of lines KEY=VALUE.",
        ) from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
