"""TCP's states, as a table (RFC 9293 §3.3.2). `python -m crumble_netd.tcp.state` draws it.

An event that the table does not have for a state changes nothing: what to send upon it is the business
of `receive.py`. FIN means that the peer's FIN is in order; SENT_FIN that ours has gone out.
"""

from __future__ import annotations

from enum import Enum, IntEnum


class State(IntEnum):
    """RFC 9293's names; the numbers go into serialized control blocks."""

    CLOSED = 0
    LISTEN = 1
    SYN_SENT = 2
    SYN_RECEIVED = 3
    ESTABLISHED = 4
    FIN_WAIT_1 = 5
    FIN_WAIT_2 = 6
    CLOSE_WAIT = 7
    CLOSING = 8
    LAST_ACK = 9
    TIME_WAIT = 10


class Event(Enum):
    """What moves a connection."""

    LISTEN = "passive open"
    OPEN = "active open / SYN"
    SYN = "SYN / SYN,ACK"
    SYN_ACK = "SYN,ACK / ACK"
    ACK_OF_SYN = "ACK of SYN"
    SENT_FIN = "close / FIN"
    ACK_OF_FIN = "ACK of FIN"
    FIN = "FIN / ACK"
    EXPIRED = "2 MSL"
    ENDED = "RST, abort or time-out"


_S, _E = State, Event

TRANSITIONS: dict[State, dict[Event, State]] = {
    _S.CLOSED: {_E.LISTEN: _S.LISTEN, _E.OPEN: _S.SYN_SENT},
    _S.LISTEN: {_E.SYN: _S.SYN_RECEIVED, _E.ENDED: _S.CLOSED},
    _S.SYN_SENT: {
        _E.SYN: _S.SYN_RECEIVED,  # simultaneous open
        _E.SYN_ACK: _S.ESTABLISHED,
        _E.ENDED: _S.CLOSED,
    },
    _S.SYN_RECEIVED: {_E.ACK_OF_SYN: _S.ESTABLISHED, _E.ENDED: _S.CLOSED},
    _S.ESTABLISHED: {
        _E.SENT_FIN: _S.FIN_WAIT_1,
        _E.FIN: _S.CLOSE_WAIT,
        _E.ENDED: _S.CLOSED,
    },
    _S.FIN_WAIT_1: {
        _E.ACK_OF_FIN: _S.FIN_WAIT_2,
        _E.FIN: _S.CLOSING,
        _E.ENDED: _S.CLOSED,
    },
    _S.FIN_WAIT_2: {_E.FIN: _S.TIME_WAIT, _E.ENDED: _S.CLOSED},
    _S.CLOSE_WAIT: {_E.SENT_FIN: _S.LAST_ACK, _E.ENDED: _S.CLOSED},
    _S.CLOSING: {_E.ACK_OF_FIN: _S.TIME_WAIT, _E.ENDED: _S.CLOSED},
    _S.LAST_ACK: {_E.ACK_OF_FIN: _S.CLOSED, _E.ENDED: _S.CLOSED},
    _S.TIME_WAIT: {_E.EXPIRED: _S.CLOSED, _E.ENDED: _S.CLOSED},
}

# States in which both sides' SYNs are acknowledged.
SYNCHRONIZED = frozenset(State) - {_S.CLOSED, _S.LISTEN, _S.SYN_SENT, _S.SYN_RECEIVED}
# The peer may still send data.
RECEIVING = frozenset((_S.ESTABLISHED, _S.FIN_WAIT_1, _S.FIN_WAIT_2))
# We may still send data, or send it again.
SENDING = frozenset((_S.ESTABLISHED, _S.CLOSE_WAIT, _S.FIN_WAIT_1, _S.CLOSING, _S.LAST_ACK))


def after(state: State, event: Event) -> State:
    """The state that follows; the same one when the event means nothing in it."""
    return TRANSITIONS[state].get(event, state)


def diagram() -> str:
    """The table as a Mermaid state diagram; ENDED, which leads from anywhere to CLOSED, is left out."""
    lines = ["stateDiagram-v2", "    [*] --> CLOSED"]
    for state, row in TRANSITIONS.items():
        for event, target in row.items():
            if event is not Event.ENDED:
                lines.append(f"    {state.name} --> {target.name}: {event.value}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())  # noqa: T201  that is what running it is for
