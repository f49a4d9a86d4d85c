"""UDP flows between a driver's rings and a socket: what is served, what is left, and what waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.udp_flow import FLOWS
from framework.udp_world import GUEST, UdpWorld


@pytest.fixture(params=[False, True], ids=["ipv4", "ipv6"])
def world(request: pytest.FixtureRequest) -> Iterator[UdpWorld]:
    made = UdpWorld(six=request.param)
    yield made
    made.close()


# -- From the guest.


def test_a_burst_arrives_as_it_was_sent(world: UdpWorld) -> None:
    """Runs of one size, which are sent in one piece, and single ones between them."""
    sizes = [100] * 70 + [7, 0, 0, 0, 0, 0, 9] + [1400] * 5 + [1399, 1, 1, 1]
    sent = [bytes([i]) * size for i, size in enumerate(sizes)]
    chains = [world.frame(data, left=i % 3 > 0) for i, data in enumerate(sent)]
    assert world.send(*chains) == (len(sent), False)
    assert world.received() == sent
    assert len(world.tx.collect()) == len(sent)
    used = world.flows.used(3)
    assert used == (50.0, sum(sizes), 0)
    assert world.flows.used(3) == (50.0, 0, 0)
    assert world.flows.counts()[0] == len(sent)
    assert world.flows.events() == []


def test_a_chain_in_many_pieces_arrives(world: UdpWorld) -> None:
    data = bytes(range(256)) * 5
    chain = world.frame(data, left=False)
    world.tx.submit([chain[i : i + 31] for i in range(0, len(chain), 31)], [])
    assert world.send() == (1, False)
    assert world.received() == [data]


@pytest.mark.parametrize("what", [
    {"left": False, "spoil": 1}, {"mac": GUEST}, {"port": 999}, {"gso": 1}, {"gso": 3}, {"gso": 5},
])  # fmt: skip
def test_what_is_not_plain_is_left_with_all_behind_it(
    world: UdpWorld, what: dict[str, object]
) -> None:
    odd = world.frame(b"odd", **what)  # type: ignore[arg-type]
    assert world.send(world.frame(b"a"), odd, world.frame(b"b")) == (1, True)
    assert world.received() == [b"a"]
    chain = world.tx_queue.pop()
    assert chain is not None
    world.tx_queue.push(chain, 0)
    assert world.send() == (1, False)
    assert world.received() == [b"b"]


def test_a_fragment_is_left() -> None:
    world = UdpWorld()
    assert world.send(world.frame(bytes(16), more=True)) == (0, True)
    world.close()


def test_padding_is_not_sent() -> None:
    world = UdpWorld()
    assert world.send(world.frame(b"short", pad=13)) == (1, False)
    assert world.received() == [b"short"]
    world.close()


def test_no_checksum_is_for_ipv4_only(world: UdpWorld) -> None:
    assert world.send(world.frame(b"x", left=False, total=0)) == (int(not world.six), world.six)


def test_an_error_of_the_socket_is_told_once_a_burst() -> None:
    world = UdpWorld()
    world.theirs.close()
    world.send(*[world.frame(b"x") for _ in range(3)])
    world.read()
    (event,) = world.flows.events()
    assert event == (3, 111)
    assert world.flows.events() == []
    world.ours.close()


def test_a_flow_taken_back_is_left(world: UdpWorld) -> None:
    world.flows.recall(3)
    assert world.send(world.frame(b"x")) == (0, True)
    fd = world.ours.fileno()
    assert world.flows.lend(FLOWS - 1, world.key, fd, 0.0)
    assert world.send() == (1, False)
    assert not world.flows.lend(FLOWS - 1, bytes(12), fd, 0.0)
    assert not world.flows.lend(3, world.key, fd, 0.0)


# -- To the guest.


@pytest.mark.parametrize("fill", [False, True], ids=["left", "filled"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_datagrams_of_the_host_become_frames(six: bool, fill: bool) -> None:
    world = UdpWorld(six=six, fill=fill, buffers=200)
    sent = [bytes([i]) * size for i, size in enumerate([1, 0, 1400, 9000, 33, 2, *[64] * 40])]
    for data in sent:
        world.theirs.send(data)
    world.read()
    assert world.datagrams() == sent
    assert world.flows.check(world.rx_queue)
    assert not world.flows.check(world.rx_queue)
    assert world.flows.used(3) == (60.0, 0, sum(max(len(data), 1) for data in sent))
    world.close()


def test_a_full_ring_makes_them_wait() -> None:
    world = UdpWorld(buffers=5)
    sent = [bytes([i]) * 10 for i in range(50)]
    for data in sent:
        world.theirs.send(data)
    world.read()
    assert world.flows.waiting == 3
    got = world.datagrams()
    assert got == sent[:5]
    world.give(100)
    world.flows.resume(world.rx_queue)
    assert world.flows.waiting is None
    world.read()
    assert got + world.datagrams() == sent
    world.close()


def test_what_waits_is_lost_with_its_flow() -> None:
    world = UdpWorld(buffers=1)
    for _ in range(3):
        world.theirs.send(b"x")
    world.read()
    world.flows.recall(3)
    assert world.flows.waiting is None
    world.give(9)
    world.flows.resume(world.rx_queue)
    assert world.datagrams() == [b"x"]
    world.close()


def test_one_that_needs_fragments_is_handed_over() -> None:
    world = UdpWorld(mtu=1500)
    sent = [bytes(1472), bytes(1473), b"after"]
    for data in sent:
        world.theirs.send(data)
    world.read()
    assert world.flows.odd() == sent[1]
    world.flows.resume(world.rx_queue)
    assert world.flows.odd() is None
    assert world.flows.waiting is None
    assert world.datagrams() == [sent[0], sent[2]]
    world.close()


def test_a_broken_ring_is_told() -> None:
    world = UdpWorld(buffers=0)
    world.rx.set_available(0, 300)
    world.rx.set_avail_idx(1)
    world.theirs.send(b"x")
    world.read()
    with pytest.raises(Exception, match="head index"):
        world.flows.check(world.rx_queue)
    world.close()


# -- Hostile.


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_frame_does_harm(data: st.DataObject) -> None:
    """Whatever a guest sends: what the host gets are payloads of frames, in order, and the rest is left."""
    world = UdpWorld(six=data.draw(st.booleans()))
    got: list[bytes] = []
    for number in range(data.draw(st.integers(1, 12))):
        payload = bytes([number]) * data.draw(st.integers(0, 300))
        chain = bytearray(world.frame(payload, left=data.draw(st.booleans())))
        spoilt = data.draw(st.sampled_from([0, 0, 1, 2]))
        for _ in range(spoilt):
            at = data.draw(st.integers(0, min(len(chain), 90) - 1))
            chain[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.sampled_from([len(chain)] * 4 + [data.draw(st.integers(1, len(chain)))]))
        parts = [bytes(chain[:cut])]
        if cut > 60 and data.draw(st.booleans()):
            at = data.draw(st.integers(1, cut - 1))
            parts = [bytes(chain[:at]), bytes(chain[at:cut])]
        world.tx.submit(parts, [])
        chains, left = world.send()
        assert chains + left == 1
        if left:
            assert spoilt or cut < len(chain)
            taken = world.tx_queue.pop()
            assert taken is not None
            world.tx_queue.push(taken, 0)
        elif not spoilt:
            got.append(payload)
        arrived = world.received()
        assert len(arrived) == chains
        if not spoilt:
            assert arrived == got[-1:] * chains
    world.close()
