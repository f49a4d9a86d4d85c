"""TCP as dialogues (see framework.tcp_playbook): closing, hostility, being alive, the table."""

from __future__ import annotations

import pytest

from crumble_netd.tcp.control_block import ControlBlock
from crumble_netd.tcp.settings import Settings
from crumble_netd.tcp.state import TRANSITIONS, Event, State, after
from framework.tcp_playbook import ESTABLISHED, Playbook, established

# -- Closing --------------------------------------------------------------------------------------


def test_we_close_first() -> None:
    established("""
        ! shutdown
        > FA 1 ack 1
        < A 1 ack 2
        < FA 1 ack 2
        = PeerClosed
        > A 2 ack 2
        < FA 1 ack 2
        > A 2 ack 2
        @ 60
        = Ended closed
    """)


def test_the_peer_closes_first() -> None:
    established("""
        < FA 1 ack 1
        = PeerClosed
        > A 1 ack 2
        ! write 100
        > AP 1+100 ack 2
        ! shutdown
        > FA 101 ack 2
        < A 2 ack 102
        = Freed 100
        = Ended closed
    """)


def test_both_close_at_once() -> None:
    established("""
        ! shutdown
        > FA 1 ack 1
        < FA 1 ack 1
        = PeerClosed
        > A 2 ack 2
        < A 2 ack 2
        @ 60
        = Ended closed
    """)


def test_a_reset_after_the_peers_end_takes_nothing_back() -> None:
    """RFC 9293 §3.10.7.4: the peer has sent all it had, and the application keeps it."""
    established("""
        ! shutdown
        > FA 1 ack 1
        < A 1 ack 2
        < FA 1 ack 2
        = PeerClosed
        > A 2 ack 2
        < R 2
        = Ended closed
    """)


def test_a_fin_waits_for_the_data_before_it() -> None:
    established("""
        < FA 501+100 ack 1
        > A 1 ack 1
        < A 1+500 ack 1
        = Data 500
        = Data 100
        > A 1 ack 601
        = PeerClosed
        > A 1 ack 602
    """)


def test_a_lost_fin_is_sent_again() -> None:
    established("""
        ! shutdown
        > FA 1 ack 1
        @ 0.2
        > FA 1 ack 1
    """)


def test_abort_resets() -> None:
    established("""
        ! abort
        > RA 1 ack 1
        = Ended aborted
    """)


# -- RFC 5961 and other hostility -----------------------------------------------------------------


def test_only_the_exact_reset_resets() -> None:
    established("""
        < R 5000
        > A 1 ack 1
        < R 20000
        < R 1
        = Ended reset
    """)


def test_a_syn_in_a_connection_is_challenged() -> None:
    established("""
        < S 5000
        > A 1 ack 1
        < S 50000
        > A 1 ack 1
    """)


def test_challenges_are_limited() -> None:
    playbook = established("< R 5000\n> A 1 ack 1")
    playbook.run("< R 5000\n> A 1 ack 1\n" * 9 + "< R 5000\n< R 5000\n@ 1\n< R 5000\n> A 1 ack 1")


@pytest.mark.parametrize("ack", [2, 5000, -20000])
def test_an_ack_of_what_was_never_sent_is_challenged(ack: int) -> None:
    established(f"""
        < A 1+10 ack {ack}
        > A 1 ack 1
    """)


def test_paws_drops_old_segments() -> None:
    Playbook().run("""
        < S 0 win 10000 mss 1000 ts 500/0
        > SA 0 ack 1
        < A 1 ack 1 win 10000 ts 600/1
        = Established
        < A 1+100 ack 1 ts 400/1
        > A 1 ack 1
        < A 1+100 ack 1
        < A 1+100 ack 1 ts 600/1
        = Data 100
    """)


# -- Being alive ----------------------------------------------------------------------------------

KEEPING = Settings(
    mss=1000, rcv_scale=0, keepalive_idle=100, keepalive_interval=10, keepalive_probes=2
)


def test_keep_alive_finds_the_dead() -> None:
    Playbook(KEEPING).run(ESTABLISHED.replace("win 10000\n", "win 10000\n")).run("""
        @ 100
        > A 0 ack 1
        < A 1 ack 1
        @ 99
        @ 1
        > A 0 ack 1
        @ 10
        > A 0 ack 1
        @ 10
        > RA 1 ack 1
        = Ended timeout
    """)


# -- The table ------------------------------------------------------------------------------------


def test_every_state_can_end_and_be_reached() -> None:
    reached = {target for row in TRANSITIONS.values() for target in row.values()}
    assert reached == set(State)
    for state in set(State) - {State.CLOSED}:
        assert after(state, Event.ENDED) is State.CLOSED


def test_a_control_block_can_be_kept() -> None:
    playbook = established("! write 500\n> AP 1+500\n< A 1+20 ack 1\n= Data 20")
    block = playbook.connection.block
    again = ControlBlock.from_bytes(block.to_bytes())
    assert again == block
    assert again.state is State.ESTABLISHED
    with pytest.raises(ValueError, match="short"):
        ControlBlock.from_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match="State"):
        ControlBlock.from_bytes(b"\x63" + block.to_bytes()[1:])
