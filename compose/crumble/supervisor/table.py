"""The services, as a table: what to start, not how.

`entry` names the Service class, "module:Class"; the forkserver imports it. `per`: one for each VM, or
one for the user, started when first asked for. `restart`: started again when it dies, on the next
request; a VM's own services are not, their VM has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crumble_common.memory_base import NAMES as MEMORY_BASE


@dataclass(frozen=True)
class Row:
    """One service. fds: the names it is given at spawn, of those that there are. warm: imported ahead
    of a second one.
    """

    name: str
    entry: str
    per: Literal["vm", "user"]
    fds: tuple[str, ...] = ()
    restart: bool = False
    warm: str = ""


Table = dict[str, Row]

TABLE: Table = {
    row.name: row
    for row in (
        # In the order in which a first VM needs them.
        Row("ocid", "crumble_ocid.service:OcidService", "user", (), restart=True),
        Row(
            "vmm",
            "crumble_vmm.service:VmmService",
            "vm",
            ("memory", "page_state", *MEMORY_BASE, "root_fs", "net", "recording"),
            warm="crumble_vmm.guest.warm",
        ),
        Row(
            "fsd",
            "crumble_fsd.service:FsdService",
            "vm",
            ("page_state", *MEMORY_BASE, "root_fs"),
            warm="crumble_fsd.warm",
        ),
        Row(
            "netd",
            "crumble_netd.service:NetdService",
            "vm",
            ("page_state", *MEMORY_BASE, "net", "capture", "arena", "parking"),
        ),
    )
}

# What supervisor and services both need: imported before a forkserver is forked off.
SHARED = (
    "crumble_common.link",
    "crumble_common.messages.vm",
    "crumble_common.messages.fs",
    "crumble_common.messages.net",
    "crumble_common.messages.image",
    "platformdirs",
)
# What the forkserver imports before it is asked, before the services: a fork of it starts at once.
# (Text files are in ASCII where the locale is C.)
PRELOAD = (*SHARED, "crumble_common.service", "encodings.ascii")
