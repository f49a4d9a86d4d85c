"""virtio-console with several ports (virtio 1.2 §5.3): the guest's hvc0 and named byte channels.

Port 0 is a console; a port with a name is a `/dev/vportNpM` in the guest. Bytes the guest sends go to
the port's `receive`; `send` queues bytes for the guest. How much may be waiting is up to whoever
uses the port: the agent's protocol has credits, a terminal has a person in front of it.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

from crumble_common.errors import InternalError
from crumble_common.virtqueue import Chain
from crumble_common.wire import WireError, pack_body, validate
from crumble_vmm.devices.virtio.local import ByteSource, LocalDevice, Loop, MessageSource, Source
from crumble_vmm.snapshot.state import ConsoleState, PortState

F_SIZE, F_MULTIPORT = 1 << 0, 1 << 1
# §5.3.4: cols, rows, max_nr_ports, emerg_wr
_CONFIG = struct.Struct("<HHII")
# §5.3.6.2: id, event, value
_CONTROL = struct.Struct("<IHH")
# §5.3.2: the control queues stand between those of port 0 and those of port 1.
CONTROL_RX, CONTROL_TX = 2, 3
# Linux puts a page into each free entry of a receive queue, so small queues save the guest memory.
_RX_SIZE, _TX_SIZE = 16, 64
# Replies waiting for the driver's control buffers; an honest driver lets a handful wait.
_MAX_CONTROL = 256


class Event(enum.IntEnum):
    """Control events (§5.3.6.2)."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


def rx_queue(port: int) -> int:
    """The queue of bytes for the guest."""
    return 0 if port == 0 else 2 + 2 * port


class Port:
    """One channel. `receive` and `opened` are called in the loop's thread.

    name: "" makes it a console. receive: bytes the guest wrote. opened: the guest opened (True) or
    closed the port, or reset the device (False).
    """

    def __init__(
        self,
        name: str,
        receive: Callable[[bytes], None],
        opened: Callable[[bool], None] = lambda _open: None,
    ) -> None:
        self.name = name
        self.receive = receive
        self.opened = opened
        self.source = ByteSource()
        self.is_open = False
        self._pump: Callable[[], None] | None = None

    def attach(self, pump: Callable[[], None]) -> None:
        """The device takes the port; `pump` moves waiting bytes to the guest."""
        self._pump = pump

    def send(self, data: bytes) -> None:
        """Queues bytes for the guest. In the loop's thread."""
        if self._pump is None:
            raise InternalError(f"Port {self.name!r} has no console.", code="vmm.port")
        self.source.put(data)
        self._pump()


class Console(LocalDevice):
    """The device: two queues a port, two for control."""

    device_id = 3

    def __init__(self, name: str, ports: Sequence[Port], loop: Loop) -> None:
        sizes = [_RX_SIZE, _TX_SIZE] * (len(ports) + 1)
        super().__init__(name, sizes, loop)
        self.ports = tuple(ports)
        self._control = MessageSource()
        self._columns, self._rows = 80, 25
        sources: dict[int, Source] = {CONTROL_RX: self._control}
        for number, port in enumerate(ports):
            sources[rx_queue(number)] = port.source
            port.attach(functools.partial(self.serve, rx_queue(number)))
        self.sources = sources

    @property
    def features(self) -> int:
        """Multiport, and the size of the console."""
        return super().features | F_SIZE | F_MULTIPORT

    @property
    def config(self) -> bytes:
        """§5.3.4."""
        return _CONFIG.pack(self._columns, self._rows, len(self.ports), 0)

    def reset(self) -> None:
        """Every port is closed."""
        super().reset()
        for port in self.ports:
            self._set_open(port, False)

    def get_state(self) -> dict[str, Any]:
        """Ports, and what waits for the driver."""
        ports = [PortState(port.is_open, port.source.data) for port in self.ports]
        return pack_body(ConsoleState(ports, self._control.messages))

    def set_state(self, state: dict[str, Any]) -> None:
        """An open port says nothing of it: nobody opened it now."""
        try:
            found = validate(ConsoleState, state, self.name)
        except WireError as error:
            raise ValueError(str(error)) from None
        if len(found.ports) != len(self.ports) or len(found.control) > _MAX_CONTROL:
            raise ValueError(f"{self.name} has other ports")
        for port, kept in zip(self.ports, found.ports, strict=True):
            port.is_open = kept.open
            port.source.put(kept.waiting)
        for message in found.control:
            self._control.put(message)

    def handle(self, index: int, chain: Chain, /) -> int:
        """Bytes or a control message from the guest."""
        if index == CONTROL_TX:
            self._handle_control(chain.read(_CONTROL.size))
        elif index % 2 == 1:
            # One buffer is at most 32 KiB with Linux; a hostile one is cut into pieces of that.
            port = self.ports[0 if index == 1 else (index - 3) // 2]
            while data := chain.read(32 << 10):
                port.receive(data)
        return 0

    def _handle_control(self, message: bytes) -> None:
        if len(message) < _CONTROL.size:
            return
        number, event, value = _CONTROL.unpack(message)
        if event == Event.DEVICE_READY and value == 1:
            for index in range(len(self.ports)):
                self._tell(index, Event.DEVICE_ADD)
        elif number >= len(self.ports):
            return
        elif event == Event.PORT_READY and value == 1:
            self._introduce(number, self.ports[number])
        elif event == Event.PORT_OPEN:
            self._set_open(self.ports[number], value == 1)

    def _introduce(self, number: int, port: Port) -> None:
        if port.name:
            self._tell(number, Event.PORT_NAME, 1, port.name.encode())
        else:
            self._tell(number, Event.CONSOLE_PORT, 1)
            self._tell(number, Event.RESIZE, 0, struct.pack("<HH", self._columns, self._rows))
        self._tell(number, Event.PORT_OPEN, 1)

    def _tell(self, number: int, event: Event, value: int = 0, payload: bytes = b"") -> None:
        if self._control.waiting >= _MAX_CONTROL:
            if self.wiring is not None:
                self.wiring.broken("The driver takes no control messages.")
            return
        self._control.put(_CONTROL.pack(number, event, value) + payload)
        self.serve(CONTROL_RX)

    def _set_open(self, port: Port, is_open: bool) -> None:
        if port.is_open != is_open:
            port.is_open = is_open
            self.loop.call_soon_threadsafe(lambda: port.opened(is_open))
