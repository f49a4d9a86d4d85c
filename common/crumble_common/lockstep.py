"""What the services of a deterministic VM agree on (docs/decisions/0013).

In lockstep a vCPU that kicks a queue stands still until the device has answered. A back end in another
process is told the guest's time by the kick itself: the eventfd's count is the guest's clock in µs since it
was switched on, at least 1. When everything has been served it answers each kick with one call, whether or
not the driver wants an interrupt; raising that is the vmm's.
"""

# The time at which every deterministic VM is switched on: 2027-01-15 08:00:00 UTC, ns.
EPOCH_NS = 1_800_000_000 * 10**9

DEFAULT_SEED = "crumble"


def kick_count(time_ns: int) -> int:
    """For the kick's eventfd, of the guest's time in ns since 1970."""
    return max(1, (time_ns - EPOCH_NS) // 1000)


def kick_time(count: int) -> int:
    """The guest's time in ns since 1970 that a kick tells."""
    return EPOCH_NS + count * 1000
