"""TCP as dialogues (see framework.tcp_playbook): opening, data, loss, windows; one rule of an RFC each."""

from __future__ import annotations

from framework.tcp_playbook import SACK, Playbook, established

# -- Opening --------------------------------------------------------------------------------------


def test_passive_open_offers_only_what_was_offered() -> None:
    Playbook().run("""
        < S 0 win 500 mss 800
        > SA 0 ack 1 win 10000 mss 1000
    """)
    plain = Playbook()
    plain.run("< S 0 win 500 mss 800\n> SA 0 ack 1")
    assert not plain.connection.block.scale_ok
    assert not plain.connection.block.sack_ok
    assert not plain.connection.block.ts_ok
    assert plain.connection.block.mss == 800


def test_active_open() -> None:
    Playbook().run("""
        ! open
        > S 0 mss 1000 sackok scale 0
        < SA 0 ack 1 win 5000 mss 900 sackok
        = Established
        > A 1 ack 1
    """)


def test_active_open_refused() -> None:
    Playbook().run("""
        ! open
        > S 0
        < RA 0 ack 1
        = Ended refused
    """)


def test_a_syn_ack_for_something_else_is_reset_and_a_blind_reset_ignored() -> None:
    Playbook().run("""
        ! open
        > S 0
        < SA 0 ack 77
        > R 77
        < R 0
        < RA 0 ack 77
        < SA 0 ack 1
        = Established
        > A 1 ack 1
    """)


def test_simultaneous_open() -> None:
    Playbook().run("""
        ! open
        > S 0
        < S 0 win 9000 mss 1000
        > SA 0 ack 1
        < SA 0 ack 1 win 9000
        = Established
        ! flush
        > A 1 ack 1
    """)


def test_a_lost_syn_ack_is_sent_again_and_backs_off() -> None:
    Playbook().run("""
        < S 0 win 500 mss 800
        > SA 0 ack 1
        < S 0 win 500 mss 800
        > SA 0 ack 1
        @ 1.0
        > SA 0 ack 1
        @ 1.9
        @ 0.1
        > SA 0 ack 1
    """)


def test_a_syn_nobody_answers_ends() -> None:
    playbook = Playbook()
    playbook.run("! open\n> S 0\n@ 1\n> S 0\n@ 2\n> S 0\n@ 4\n> S 0\n@ 8\n> S 0\n@ 16\n> S 0")
    playbook.run("@ 32\n> S 0\n@ 64\n= Ended timeout")


# -- Data -----------------------------------------------------------------------------------------


def test_data_both_ways_and_one_ack_for_a_burst() -> None:
    established("""
        < AP 1+400 ack 1
        = Data 400
        < AP 401+600 ack 1
        = Data 600
        ! flush
        > A 1 ack 1001 win 9000
        ! flush
        ! consumed 1000
        ! write 1500
        > A 1+1000 ack 1001
        > AP 1001+500 ack 1001
        < A 1001 ack 1501
        = Freed 1500
    """)


def test_out_of_order_data_is_acknowledged_at_once_and_delivered_in_order() -> None:
    established("""
        < A 501+500 ack 1
        > A 1 ack 1
        < A 1+500 ack 1
        = Data 500
        = Data 500
        > A 1 ack 1001
    """)


def test_sack_blocks_tell_the_latest_first() -> None:
    established(
        """
        < A 1001+500 ack 1
        > A 1 ack 1 sack 1001-1501
        < A 3001+500 ack 1
        > A 1 ack 1 sack 3001-3501,1001-1501
        < A 1501+500 ack 1
        > A 1 ack 1 sack 1001-2001,3001-3501
        < A 1+1000 ack 1
        = Data 1000
        = Data 500
        = Data 500
        > A 1 ack 2001 sack 3001-3501
    """,
        opening=SACK,
    )


def test_data_that_was_there_already_is_trimmed() -> None:
    established("""
        < A 1+500 ack 1
        = Data 500
        < A 301+500 ack 1
        = Data 300
        ! flush
        > A 1 ack 801
        < A 1+500 ack 1
        > A 1 ack 801
    """)


def test_data_beyond_the_window_is_not_taken() -> None:
    established("""
        < A 1+8000 ack 1
        = Data 8000
        < A 8001+4000 ack 1
        = Data 2000
        ! flush
        > A 1 ack 10001 win 0
        < A 10001+1 ack 1
        > A 1 ack 10001 win 0
        ! consumed 10000
        > A 1 ack 10001 win 10000
    """)


def test_a_window_that_opens_a_little_is_not_told() -> None:
    established("""
        < A 1+10000 ack 1
        = Data 10000
        ! flush
        > A 1 ack 10001 win 0
        ! consumed 100
        ! consumed 800
        ! consumed 200
        > A 1 ack 10001 win 1100
    """)


# -- Loss -----------------------------------------------------------------------------------------


def test_retransmission_timeout_backs_off_and_resends_one() -> None:
    established("""
        ! write 3000
        > A 1+1000 ack 1
        > A 1001+1000 ack 1
        > AP 2001+1000 ack 1
        @ 0.2
        > A 1+1000 ack 1
        @ 0.39
        @ 0.01
        > A 1+1000 ack 1
        < A 1 ack 1001
        = Freed 1000
        > A 1001+1000 ack 1
        > AP 2001+1000 ack 1
    """)


def test_three_duplicate_acks_retransmit() -> None:
    established("""
        ! write 5000
        > A 1+1000
        > A 1001+1000
        > A 2001+1000
        > A 3001+1000
        > AP 4001+1000
        < A 1 ack 1
        < A 1 ack 1
        < A 1 ack 1
        > A 1+1000
        < A 1 ack 5001
        = Freed 5000
    """)


def test_sack_retransmits_the_holes_only() -> None:
    established(
        """
        ! write 8000
        > A 1+1000
        > A 1001+1000
        > A 2001+1000
        > A 3001+1000
        > A 4001+1000
        > A 5001+1000
        > A 6001+1000
        > AP 7001+1000
        < A 1 ack 1 win 20000 sack 1001-2001
        < A 1 ack 1 win 20000 sack 3001-4001,1001-2001
        < A 1 ack 1 win 20000 sack 3001-7001,1001-2001
        > A 1+1000
        > A 2001+1000
        < A 1 ack 7001 win 20000
        = Freed 7000
        < A 1 ack 8001 win 20000
        = Freed 1000
    """,
        opening=SACK,
    )


def test_sack_blocks_that_cannot_be_true_are_ignored() -> None:
    playbook = established(
        """
        ! write 2000
        > A 1+1000
        > AP 1001+1000
        < A 1 ack 1 win 20000 sack 5001-9001
        < A 1 ack 1 win 20000 sack 2001-1001
    """,
        opening=SACK,
    )
    assert playbook.connection.scoreboard.sacked == 0


# -- Windows --------------------------------------------------------------------------------------


def test_zero_window_is_probed_and_opens() -> None:
    established("""
        ! write 1000
        > AP 1+1000
        < A 1 ack 1001 win 0
        = Freed 1000
        ! write 500
        @ 0.2
        > A 1000
        < A 1 ack 1001 win 0
        @ 0.4
        > A 1000
        < A 1 ack 1001 win 5000
        > AP 1001+500
    """)


def test_silly_windows_are_waited_out() -> None:
    established("""
        ! write 1000
        > AP 1+1000
        < A 1 ack 1001 win 100
        = Freed 1000
        ! write 1000
        @ 0.2
        > A 1001+100
    """)


def test_a_paused_way_sends_nothing_and_loses_nothing() -> None:
    established("""
        ! paused
        ! write 1000
        ! resume
        > AP 1+1000
    """)
