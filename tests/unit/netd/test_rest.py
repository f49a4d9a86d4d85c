"""When a network is at rest: what a successor could not know of is not forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from crumble_netd.rate import Rate
from crumble_netd.rest import Rest
from framework.netd_side import NetdSide


def test_a_rate_that_was_overspent_is_waited_for() -> None:
    """A guest that sends a second's worth at once waits for a second, whatever its network does meanwhile."""
    side, idle = NetdSide(), []
    side.port.rate_out = Rate(1000.0, 500.0)
    guest: Any = SimpleNamespace(
        port=side.port, device=side.device, frames=0, forwards={}, serving=SimpleNamespace(running=True)
    )  # fmt: skip
    rest = Rest(side.loop, side.stack, guest, lambda: idle.append(side.time))
    side.port.rate_out.spend(20_500, side.time)
    for _ in range(5):
        side.time += 4.0
        side.loop.step(0)
        assert idle == []
    side.time += 4.0
    side.loop.step(0)
    assert idle == [1024.0]
    rest.close()
    side.close()
