"""The command line of `crumble-ocid`: pull, images, inspect, rm, export, kernel."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crumble_common import paths
from crumble_common.errors import CrumbleError
from crumble_common.messages.image import ImageExport, ImageGet, KernelGet, Progress
from crumble_ocid.library import Library
from crumble_ocid.progress import Reporter
from crumble_ocid.reference import parse_reference
from crumble_ocid.store import Store

_INTERRUPTED = 130
_UNITS = {"bytes": (1e6, "MB"), "files": (1, "files"), "packages": (1, "packages")}


def run(arguments: list[str]) -> int:
    """Runs one command; the exit status. Errors are one sentence on stderr."""
    options = _parser().parse_args(arguments)
    stop = threading.Event()
    meter = Meter()
    try:
        library = Library(Store(_store(options.store)), insecure=_insecure(options))
        signal.signal(signal.SIGINT, lambda *_: _interrupt(stop, library))
        options.command(library, options, Reporter(meter.show, stop=stop))
    except CrumbleError as error:
        meter.clear()
        if error.code == "cancelled":
            return _INTERRUPTED
        sys.stderr.write(f"crumble-ocid: {error}\n")
        return 1
    except OSError as error:
        meter.clear()
        sys.stderr.write(f"crumble-ocid: {error}.\n")
        return 1
    return 0


def _interrupt(stop: threading.Event, library: Library) -> None:
    """The first ^C ends the work in an orderly way, a second one at once."""
    stop.set()
    library.abort()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Meter:
    """A line on a terminal that says how far each step is; nothing anywhere else."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def show(self, progress: Progress) -> None:
        """Draws one event."""
        if not self._terminal:
            return
        scale, unit = _UNITS[progress.unit]
        done = f"{progress.done / scale:.0f}"
        total = f" of {progress.total / scale:.0f}" if progress.total else ""
        sys.stderr.write(f"\r\x1b[K{progress.step}: {done}{total} {unit}")
        sys.stderr.flush()

    def clear(self) -> None:
        """Takes the line away."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _pull(library: Library, options: argparse.Namespace, reporter: Reporter) -> None:
    reference = str(parse_reference(options.reference, Path.cwd()))
    image = library.get(ImageGet(reference, options.platform, options.policy), reporter)
    _print(options, asdict(image), image.digest)


def _images(library: Library, options: argparse.Namespace, reporter: Reporter) -> None:
    del reporter
    images = library.images().images
    rows = [
        f"{i.reference:40} {i.platform:16} {i.id.partition(':')[2][:12]} {i.size / 1e6:8.1f} MB"
        for i in images
    ]
    heading = f"{'REFERENCE':40} {'PLATFORM':16} {'ID':12} {'SIZE':>11}"
    _print(options, [asdict(image) for image in images], "\n".join([heading, *rows]))


def _inspect(library: Library, options: argparse.Namespace, reporter: Reporter) -> None:
    del reporter
    details = library.inspect(options.reference)
    shown: dict[str, Any] = asdict(details)
    shown["manifest"], shown["config"] = json.loads(details.manifest), json.loads(details.config)
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")


def _remove(library: Library, options: argparse.Namespace, reporter: Reporter) -> None:
    del reporter
    for reference in options.references:
        removed = library.remove(reference)
        text = f"Removed {', '.join(removed.references)}; {removed.freed / 1e6:.1f} MB freed."
        _print(options, asdict(removed), text)


def _export(library: Library, options: argparse.Namespace, reporter: Reporter) -> None:
    path = str(Path.cwd() / options.path)
    library.export(ImageExport(options.reference, path, options.format), reporter)
    _print(options, {"path": path, "format": options.format}, path)


def _kernel(library: Library, options: argparse.Namespace, reporter: Reporter) -> None:
    request = KernelGet(options.architecture, options.version)
    kernel = library.kernel(request, reporter, refresh=options.refresh)
    _print(options, asdict(kernel), "\n".join([kernel.image, *kernel.modules]))


def _print(options: argparse.Namespace, value: Any, text: str) -> None:
    Meter().clear()
    sys.stdout.write((json.dumps(value, indent=2) if options.json else text) + "\n")


def _store(given: str | None) -> Path:
    return Path(given) if given else paths.store_dir()


def _insecure(options: argparse.Namespace) -> list[str]:
    given = os.environ.get("CRUMBLE_INSECURE_REGISTRIES", "").split(",")
    return [*options.insecure, *filter(None, given)]


Command = Callable[[Library, argparse.Namespace, Reporter], None]


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", metavar="DIR", help="the image store (default: the user's)")
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument(
        "--insecure", action="append", default=[], metavar="HOST[:PORT]",
        help="a registry to talk plain HTTP to; may be repeated",
    )  # fmt: skip
    parser = argparse.ArgumentParser(prog="crumble-ocid", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what, parents=[common])
        made.set_defaults(command=command)
        return made

    pull = add(
        "pull",
        _pull,
        "get an image: NAME[:TAG][@DIGEST], deb:SUITE[/PKG,…], oci:DIR[:TAG], docker-archive:FILE[:REF]",
    )
    pull.add_argument("reference")
    pull.add_argument("--platform", default="", help="os/architecture (default linux/riscv64)")
    pull.add_argument("--policy", choices=("missing", "always", "never"), default="always")
    add("images", _images, "list the images in the store")
    add("inspect", _inspect, "show an image's documents").add_argument("reference")
    add("rm", _remove, "remove images").add_argument("references", nargs="+", metavar="REFERENCE")
    export = add("export", _export, "write an image as an OCI layout or a docker-archive")
    export.add_argument("reference")
    export.add_argument("path", help="a new directory, or file (.tar)")
    export.add_argument("--format", choices=("oci", "docker-archive"), default="oci")
    kernel = add("kernel", _kernel, "get a kernel and its modules")
    kernel.add_argument("architecture", nargs="?", default="riscv64")
    kernel.add_argument("--version", default="", help="a kernel release (default: the newest)")
    kernel.add_argument("--refresh", action="store_true", help="ask the archive for a newer one")
    return parser
