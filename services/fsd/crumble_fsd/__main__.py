"""`crumble-fsd`: a virtio-fs server for any vhost-user front end, used as virtiofsd is.

    crumble-fsd --socket-path /run/fs.sock --layer base.index:base.contents --upper /var/lib/vm1

It serves one front end and ends when that leaves.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.listen import listen_at
from crumble_common.messages.fs import FsConfig, Layer, Share
from crumble_common.service import service_main
from crumble_fsd.service import FsdService

_CAPABILITIES = {"type": "fs", "features": []}


def main(argv: Sequence[str] | None = None) -> int:
    """Under the supervisor without arguments, by flags with them; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        return service_main(FsdService)
    options = _parser().parse_args(arguments)
    if options.print_capabilities:
        print(json.dumps(_CAPABILITIES))  # noqa: T201  that is what the flag is for
        return 0
    try:
        config = _config(options)
        fd = options.fd if options.fd is not None else listen_at(options.socket_path).detach()
    except CrumbleError as error:
        print(f"crumble-fsd: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return service_main(FsdService, config, fds={"socket": fd})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crumble-fsd", description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket-path", metavar="PATH", help="listen at this Unix socket")
    where.add_argument("--fd", type=int, metavar="N", help="a listening or connected socket")
    where.add_argument(
        "--print-capabilities", action="store_true", help="print what this back end is, as JSON"
    )
    parser.add_argument(
        "--layer", action="append", default=[], metavar="INDEX:CONTENTS",
        help="an image layer, lowest first; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--upper", default="", metavar="DIR", help="keep what the guest writes here"
    )
    parser.add_argument(
        "--upper-limit", type=int, default=8 << 30, metavar="BYTES", help="of an upper in memory"
    )
    parser.add_argument(
        "--shared-dir", metavar="DIR[:ro]", help="serve this host directory as the whole tree"
    )
    parser.add_argument(
        "--share", action="append", default=[], metavar="SOURCE:TARGET[:ro]",
        help="a host directory or file at a path of the tree; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--posix-lock", action="store_true",
        help="take locks on the host too, so that VMs sharing files see each other's",
    )  # fmt: skip
    parser.add_argument("--tag", default="", help="offer the configuration space, with this tag")
    return parser


def _config(options: argparse.Namespace) -> FsConfig:
    shares = [_share(text) for text in options.share]
    if options.shared_dir:
        shares.append(
            _share(options.shared_dir.removesuffix(":ro") + ":/" + _ro(options.shared_dir))
        )
    return FsConfig(
        tag=options.tag,
        socket_fd="socket",
        layers=[_layer(text) for text in options.layer],
        upper=options.upper,
        upper_limit=options.upper_limit,
        shares=shares,
        shared_locks=options.posix_lock,
    )


def _ro(text: str) -> str:
    return ":ro" if text.endswith(":ro") else ""


def _layer(text: str) -> Layer:
    index, colon, contents = text.rpartition(":")
    if not colon or not index or not contents:
        raise UsageError(f"--layer wants INDEX:CONTENTS, not {text!r}.")
    return Layer(index, contents)


def _share(text: str) -> Share:
    body, read_only = (text[:-3], True) if text.endswith(":ro") else (text, False)
    source, colon, target = body.rpartition(":")
    if not colon or not source or not target:
        raise UsageError(f"--share wants SOURCE:TARGET[:ro], not {text!r}.")
    return Share(source, target, read_only)


if __name__ == "__main__":
    sys.exit(main())
