"""What outlives this process: a record of each flow, and its bytes that are still on the way, in an arena.

A process may die at any instruction. So whatever is changed is written beside what is there, and then
one word says which of the two holds; a flow is there from the word that names it to the one that does not.
The rule for writers: what a guest is told (an ACK, a FIN, a window) is written down before it is told.

    flows          a word for each slot: its flow's number, or 0
    slot (2 KiB)   words: which block, which numbers, rooms of both rings, size of identity
                   identity: whose flow it is; written once
                   2 × block: the control block at its last change of state
                   2 × numbers: those that move with every segment (`Numbers`)
    streams        for each TCP slot a ring to the guest and one from it, see tcp/buffers.py
    state          2 × what the network is besides flows, small
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack

from crumble_common.arena import Arena
from crumble_common.errors import InternalError
from crumble_netd.tcp.buffers import START
from crumble_netd.tcp.control_block import ControlBlock

# Flows that can be kept: TCP ones, with rings, and others.
STREAMS, OTHERS = 2048, 1088
TO_GUEST, FROM_GUEST = 2 << 20, 1 << 20
_RINGS = TO_GUEST + FROM_GUEST
_SLOT = 2048
_BLOCK, _NUMBERS, _TO_ROOM, _FROM_ROOM, _IDENTITY = range(5)
_IDENTITY_AT, _IDENTITY_MAX = 64, 384
_NUMBERS_AT, _NUMBERS_SIZE = 448, 128
_BLOCK_AT, _BLOCK_SIZE = 704, 640
_STATE = 1 << 20
_STATE_HEADER = 64
_LAYOUT = struct.Struct("@QdIIIIIII")


class Numbers(NamedTuple):
    """Of a control block. turn: of the block they belong to; another one has newer numbers itself."""

    turn: int
    ts_recent_at: float
    ts_recent: int
    snd_una: int
    rcv_nxt: int
    rcv_adv: int
    rcv_limit: int
    snd_wnd: int
    max_snd_wnd: int


class Slot:
    """The place of one flow. to_guest, from_guest: memory of its rings; empty when it has none."""

    def __init__(self, ledger: Ledger, index: int) -> None:
        self._ledger, self._index = ledger, index
        self._memory = ledger.slots[index * _SLOT : (index + 1) * _SLOT]
        self._words = self._memory.cast("Q")
        self.to_guest = self.from_guest = memoryview(b"")
        if index < STREAMS:
            at = index * _RINGS
            self.to_guest = ledger.streams[at : at + TO_GUEST]
            self.from_guest = ledger.streams[at + TO_GUEST : at + _RINGS]

    @property
    def flow(self) -> int:
        """The flow's number; 0 when there is none."""
        return self._ledger.numbers[self._index]

    @property
    def rooms(self) -> tuple[int, int]:
        """Of the rings to the guest and from it."""
        return self._words[_TO_ROOM], self._words[_FROM_ROOM]

    @property
    def notes(self) -> tuple[memoryview, memoryview]:
        """For who writes `Numbers` down elsewhere: the words, and both places."""
        at = _NUMBERS_AT
        return self._memory[:_IDENTITY_AT], self._memory[at : at + 2 * _NUMBERS_SIZE]

    def begin(self, flow: int, identity: dict[str, Any], block: ControlBlock | None = None) -> None:
        """A flow is here now."""
        data = msgpack.packb(identity)
        if len(data) > _IDENTITY_MAX:
            raise ValueError("an identity is too long")
        self._memory[_IDENTITY_AT : _IDENTITY_AT + len(data)] = data
        self._words[_IDENTITY] = len(data)
        if block is not None:
            self.write_block(block)
        self._ledger.numbers[self._index] = flow

    def clear(self) -> None:
        """Nothing is here, and nobody looks."""
        words = self._words
        words[_BLOCK] = words[_NUMBERS] = 0
        words[_TO_ROOM] = words[_FROM_ROOM] = START

    def end(self) -> None:
        """It is not any more; the slot is free."""
        to_guest, from_guest = self.rooms
        self._ledger.numbers[self._index] = 0
        self._ledger.free(self._index, to_guest, from_guest)

    def enlarged_to_guest(self, room: int) -> None:
        """Of SendBuffer."""
        self._words[_TO_ROOM] = room

    def enlarged_from_guest(self, room: int) -> None:
        """Of SendBuffer."""
        self._words[_FROM_ROOM] = room

    def write_block(self, block: ControlBlock) -> None:
        """All of it."""
        data, turn = block.to_bytes(), self._words[_BLOCK] + 1
        at = _BLOCK_AT + (turn & 1) * _BLOCK_SIZE
        self._memory[at : at + len(data)] = data
        self._words[_BLOCK] = turn

    def write_numbers(self, block: ControlBlock) -> None:
        """Those that move with every segment."""
        words = self._words
        turn = words[_NUMBERS] + 1
        _LAYOUT.pack_into(
            self._memory, _NUMBERS_AT + (turn & 1) * _NUMBERS_SIZE, words[_BLOCK],
            block.ts_recent_at, block.ts_recent, block.snd_una, block.rcv_nxt, block.rcv_adv,
            block.rcv_limit, block.snd_wnd, block.max_snd_wnd,
        )  # fmt: skip
        words[_NUMBERS] = turn

    def identity(self) -> dict[str, Any]:
        """Whose flow it is; raises ValueError."""
        size = self._words[_IDENTITY]
        if not 0 < size <= _IDENTITY_MAX:
            raise ValueError("an identity is too long")
        found = msgpack.unpackb(self._memory[_IDENTITY_AT : _IDENTITY_AT + size])
        if not isinstance(found, dict):
            raise ValueError("an identity is something else")
        return found

    def block(self) -> ControlBlock:
        """The control block as it was told of last; raises ValueError when there is none."""
        turn = self._words[_BLOCK]
        if not turn:
            raise ValueError("there is no control block")
        at = _BLOCK_AT + (turn & 1) * _BLOCK_SIZE
        block = ControlBlock.from_bytes(self._memory[at : at + _BLOCK_SIZE])
        at = _NUMBERS_AT + (self._words[_NUMBERS] & 1) * _NUMBERS_SIZE
        numbers = Numbers(*_LAYOUT.unpack_from(self._memory, at))
        if self._words[_NUMBERS] and numbers.turn == turn:
            for name in Numbers._fields[1:]:
                setattr(block, name, getattr(numbers, name))
        return block


class Ledger:
    """Over the arena, which is taken over. Raises InternalError when it is of another kind."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        # The streams first: so the rings begin with pages.
        self.streams = arena.section("streams", STREAMS * _RINGS)
        self.slots = arena.section("slots", (STREAMS + OTHERS) * _SLOT)
        self.numbers = arena.section("flows", (STREAMS + OTHERS) * 8).cast("Q")
        self._state = arena.section("state", _STATE_HEADER + 2 * _STATE)
        self._turn = self._state[:8].cast("Q")
        taken = self.numbers.tolist()
        # The last one freed is the first one taken: its memory is there already.
        self._free = [i for i in reversed(range(STREAMS)) if not taken[i]]
        last = STREAMS + OTHERS
        self._others = [i for i in reversed(range(STREAMS, last)) if not taken[i]]
        self._slots: dict[int, Slot] = {}  # by index, those that have been taken: made once

    def take(self, *, stream: bool) -> Slot | None:
        """A free slot, with rings or without; None when there is none."""
        free = self._free if stream else self._others
        if not free:
            return None
        index = free.pop()
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = Slot(self, index)
        slot.clear()
        return slot

    def free(self, index: int, to_guest: int, from_guest: int) -> None:
        """For slots. Rings that have grown are given back to the host."""
        if index >= STREAMS:
            self._others.append(index)
            return
        at = index * _RINGS
        if to_guest > START:
            self._arena.release("streams", at + START, to_guest - START)
        if from_guest > START:
            self._arena.release("streams", at + TO_GUEST + START, from_guest - START)
        self._free.append(index)

    def flows(self) -> Iterator[Slot]:
        """What is in use."""
        for index, flow in enumerate(self.numbers.tolist()):
            if flow:
                yield Slot(self, index)

    def write_state(self, state: bytes) -> None:
        """What there is besides flows; raises InternalError when it is too much."""
        if len(state) > _STATE - 4:
            raise InternalError("The network's state is too large to keep.", code="net.state")
        turn = self._turn[0] + 1
        at = _STATE_HEADER + (turn & 1) * _STATE
        self._state[at : at + 4 + len(state)] = len(state).to_bytes(4, "little") + state
        self._turn[0] = turn

    def state(self) -> bytes:
        """What was last written; b"" when nothing was: then this is the first process."""
        if not self._turn[0]:
            return b""
        at = _STATE_HEADER + (self._turn[0] & 1) * _STATE
        size = min(int.from_bytes(self._state[at : at + 4], "little"), _STATE - 4)
        return bytes(self._state[at + 4 : at + 4 + size])
