"""x86's ways to switch off and to reset, as ports: ACPI's sleep control and reset registers (ACPI 6.5,
§4.8.3.7, §5.2.9), and the i8042's "pulse reset line" command, which kernels fall back to.
"""

from __future__ import annotations

from crumble_vmm.chipset.builder import RegisterDevice
from crumble_vmm.hypervisor.base import Exit, ExitReason, GuestEnds

SLEEP_CONTROL, SLEEP_STATUS, RESET = 0, 1, 2
SIZE = 3
RESET_VALUE = 1
I8042_BASE, I8042_SIZE = 0x60, 5
_I8042_COMMAND, _PULSE_RESET = 4, 0xFE
_SLEEP_ENABLE = 1 << 5


class PowerPorts(RegisterDevice):
    """ACPI's registers."""

    name = "power"

    def mmio_read(self, offset: int, size: int) -> int:  # noqa: ARG002  it says the same at each
        """Nothing to be read: it never wakes up."""
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Raises GuestEnds for what ends the machine."""
        if size == 1 and offset == SLEEP_CONTROL and value & _SLEEP_ENABLE:
            raise GuestEnds(Exit(ExitReason.POWER_OFF, "shutdown"))
        if size == 1 and offset == RESET and value == RESET_VALUE:
            raise GuestEnds(Exit(ExitReason.RESET, "reboot"))


class KeyboardController(RegisterDevice):
    """An i8042 without a keyboard: it is always idle."""

    name = "i8042"

    def mmio_read(self, offset: int, size: int) -> int:  # noqa: ARG002  it says the same at each
        """Status: nothing waits in either direction."""
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002  a command is a byte
        """Raises GuestEnds for a reset."""
        if offset == _I8042_COMMAND and value == _PULSE_RESET:
            raise GuestEnds(Exit(ExitReason.RESET, "reboot"))
