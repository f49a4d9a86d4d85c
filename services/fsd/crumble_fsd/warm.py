"""Importing this has at hand what every file server needs: for a process that forks many."""

from crumble_common import sandbox
from crumble_fsd.service import _SYSCALLS

sandbox.warm(sandbox.Profile(syscalls=_SYSCALLS))
