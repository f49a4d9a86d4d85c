"""`crumble inspect IMAGE|VM`."""

from __future__ import annotations

import json
from typing import Any

from crumble.cli import output
from crumble.cli.link import Link
from crumble.cli.parser import Parser
from crumble.sdk.options import image_reference
from crumble_common.messages import client
from crumble_common.messages import image as messages
from crumble_common.wire import pack_body


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit status."""
    parser = Parser("inspect", "Shows the details of an image, or of a VM, as JSON.")
    parser.json()
    parser.add_argument("--vm", action="store_true", help="the name is a VM's")
    parser.add_argument("name", metavar="NAME")
    options = parser.parse_args(arguments)
    with Link(own=not options.vm) as link:
        found = _vm(link, options.name)
        if found is None and not options.vm:
            found = _image(link, options.name)
    if found is None:
        parser.error(f"there is no VM {options.name}")
    print(json.dumps(found, indent=2))
    return 0


def _vm(link: Link, name: str) -> dict[str, Any] | None:
    vms: client.VmInfos = link.call(client.VmList(all=True))
    for vm in vms.vms:
        if name in (vm.name, vm.id):
            return pack_body(vm)
    return None


def _image(link: Link, name: str) -> dict[str, Any]:
    request = messages.ImageInspect(image_reference(name))
    details: messages.ImageDetails = link.call(request, to="images")
    shown = pack_body(details.image)
    shown["references"] = details.references
    shown["manifest"] = _parsed(details.manifest)
    shown["image_config"] = _parsed(details.config)
    return shown


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return output.clean(text)
