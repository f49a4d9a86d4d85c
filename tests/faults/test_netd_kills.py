"""netd killed at many instants under load, without a guest: each seed is another schedule."""

from __future__ import annotations

import pytest

from crumble_common.messages.net import NetConfig, NetPolicy
from framework.netd_exchange import exchange
from framework.surviving_netd import SurvivingNetd


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10, 30))
def test_killed_at_many_instants(seed: int) -> None:
    with SurvivingNetd(NetConfig("net", policy=NetPolicy(["host"]))) as netd:
        exchange(netd, seed, [0.0, 0.001, 0.004][seed % 3], 10, 10_000_000)
    assert not any("Traceback" in errors for errors in netd.errors), netd.errors
