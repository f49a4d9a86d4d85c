"""ACPI's Watchdog Action Table (Microsoft, Hardware Watchdog Timers Design Specification, 2006): what to read
and write for each thing that a watchdog does. Here of devices/watchdog.py.
"""

from __future__ import annotations

import struct

from crumble_vmm.devices import watchdog

# §4: the watchdog's header, with no PCI device behind it.
_HEADER = struct.Struct("<IHBBB3xIIIB3xI")
_NO_PCI = (0xFF, 0xFF, 0xFF, 0xFF)
_ENABLED = 1
_PERIOD = 1000  # ms of a count
# §4.1: action, instruction, register, value, mask.
_ENTRY = struct.Struct("<BBxxBBBBQII")
_RESET, _GET_COUNTDOWN, _SET_COUNTDOWN = 1, 5, 6
_GET_RUNNING, _SET_RUNNING, _GET_STOPPED, _SET_STOPPED = 8, 9, 10, 11
_READ_VALUE, _READ_COUNT, _WRITE_VALUE, _WRITE_COUNT, _PRESERVE = 0, 1, 2, 3, 0x80
_SYSTEM_MEMORY, _DOUBLE_WORD = 0, 3
_ALL = 0xFFFF_FFFF


def wdat(base: int) -> bytes:
    """The table's body, for registers at `base`."""
    on = watchdog.ENABLE
    entries = b"".join(
        _ENTRY.pack(
            action, instruction, _SYSTEM_MEMORY, 32, 0, _DOUBLE_WORD, base + register, value, mask
        )
        for action, instruction, register, value, mask in (
            (_RESET, _WRITE_VALUE, watchdog.CONTROL, watchdog.RELOAD, _ALL),
            (_GET_COUNTDOWN, _READ_COUNT, watchdog.COUNT, 0, watchdog.MAX_COUNT),
            (_SET_COUNTDOWN, _WRITE_COUNT, watchdog.COUNT, 0, watchdog.MAX_COUNT),
            (_GET_RUNNING, _READ_VALUE, watchdog.MODE, on, on),
            (_SET_RUNNING, _WRITE_VALUE | _PRESERVE, watchdog.MODE, on, on),
            (_GET_STOPPED, _READ_VALUE, watchdog.MODE, 0, on),
            (_SET_STOPPED, _WRITE_VALUE | _PRESERVE, watchdog.MODE, 0, on),
        )
    )
    count = len(entries) // _ENTRY.size
    times = (_PERIOD, watchdog.MAX_COUNT, 1)
    return _HEADER.pack(_HEADER.size, *_NO_PCI, *times, _ENABLED, count) + entries
