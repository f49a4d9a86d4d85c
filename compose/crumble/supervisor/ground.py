"""What a supervisor stands on, made before most of it is imported: its directory and its forkserver.

The forkserver has the most to import of all. Where the process is ours alone (the command), it is a
fork of this one, made as soon as what both need is imported; both go on at once from there.
"""

from __future__ import annotations

import importlib

from crumble.supervisor.instance import Instance
from crumble.supervisor.spawner import Spawner
from crumble.supervisor.table import PRELOAD, SHARED, TABLE, Table


class Ground:
    """Taken over by a Supervisor; else closed.

    fork: this process may be forked as it is; that must come before its first thread.
    """

    def __init__(self, *, daemon: bool = False, table: Table = TABLE, fork: bool = False) -> None:
        self.table = table
        self.instance = Instance(daemon=daemon)
        try:
            if fork:
                for name in SHARED:
                    importlib.import_module(name)
            self.spawner = self.new_spawner(fork=fork)
        except BaseException:
            self.instance.close()
            raise

    def new_spawner(self, *, fork: bool = False) -> Spawner:
        """A forkserver: the first one, or another when it was lost."""
        rows = self.table.values()
        entries = tuple(row.entry.partition(":")[0] for row in rows)
        entries += tuple(row.warm for row in rows if row.warm)
        log = self.instance.logs / "forkserver.log"
        return Spawner(self.instance.path, log, PRELOAD + entries, fork=fork)

    def close(self) -> None:
        """Leaves nothing behind."""
        self.spawner.close()
        self.instance.close()
