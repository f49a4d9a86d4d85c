"""`crumble save IMAGE -o PATH`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble.cli.progress import Bars
from crumble.sdk.options import image_reference
from crumble_common.messages import image as messages


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("save", "Writes an image to a file or directory.")
    parser.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="where; must not exist"
    )
    parser.add_argument(
        "--format", choices=("oci", "docker-archive"),
        help="an OCI layout directory, or a docker archive (default: by PATH: .tar is an archive)",
    )  # fmt: skip
    parser.add_argument("image", metavar="IMAGE")
    options = parser.parse_args(arguments)
    path = Path(options.output).absolute()
    kind: Literal["oci", "docker-archive"]
    kind = options.format or ("docker-archive" if path.suffix == ".tar" else "oci")
    request = messages.ImageExport(image_reference(options.image), str(path), kind, "save")
    with Link() as link, Bars() as bars:
        link.client.listen("images", bars.event)
        link.call(request, to="images")
    print(path)
    return 0
