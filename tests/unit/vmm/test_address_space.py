"""The memory map: claims, windows, overlaps."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import InternalError
from crumble_vmm.hypervisor.address_space import AddressSpace, Kind


def test_regions_are_found_by_address_and_listed_in_order() -> None:
    space = AddressSpace()
    ram = space.add_ram("ram", 0x8000_0000, 0x1000_0000)
    uart = space.add_mmio("uart", 0x1000_0000, 0x100)
    assert space.regions == (uart, ram)
    assert space.find(0x1000_00FF) == uart
    assert space.find(0x1000_0100) is None
    assert space.find(0x8FFF_FFFF) == ram
    assert space.find(0x0) is None
    assert str(uart) == "0x000010000000-0x0000100000ff : uart (mmio)"


@pytest.mark.parametrize(
    ("base", "size"),
    [(0x1000, 0x1000), (0x1FFF, 1), (0x0, 0x1001), (0x0, 0x10000), (0x1800, 0x10), (0x5000, 0)],
)
def test_overlap_and_emptiness_are_refused(base: int, size: int) -> None:
    space = AddressSpace()
    space.add_mmio("first", 0x1000, 0x1000)
    with pytest.raises(InternalError):
        space.add_mmio("second", base, size)
    assert len(space.regions) == 1


def test_nothing_lies_beyond_the_limit() -> None:
    space = AddressSpace(limit=1 << 32)
    with pytest.raises(InternalError):
        space.add_ram("ram", 0x8000_0000, 0x8000_0001)
    with pytest.raises(InternalError):
        space.add_ram("ram", -0x1000, 0x2000)
    space.add_ram("ram", 0x8000_0000, 0x8000_0000)


def test_window_places_at_the_lowest_free_multiple() -> None:
    space = AddressSpace()
    space.add_window("pci", 0x4000_0000, 0x10000)
    first = space.allocate_mmio("pci", "bar0", 0x100)
    second = space.allocate_mmio("pci", "bar1", 0x4000, align=0x4000)
    third = space.allocate_mmio("pci", "bar2", 0x1000)
    assert [item.base for item in (first, second, third)] == [0x4000_0000, 0x4000_4000, 0x4000_1000]
    assert space.find(0x4000_4010) == second
    assert space.find(0x4000_0100) is None
    with pytest.raises(InternalError, match="no 0x10000 bytes left"):
        space.allocate_mmio("pci", "bar3", 0x10000)
    with pytest.raises(InternalError):
        space.allocate_mmio("isa", "bar", 0x10)
    with pytest.raises(InternalError):
        space.allocate_mmio("pci", "bar", 0x10, align=3)


@given(st.lists(st.tuples(st.integers(1, 0x900), st.sampled_from([1, 16, 256, 4096])), max_size=30))
def test_placed_regions_never_overlap(wanted: list[tuple[int, int]]) -> None:
    """Whatever is asked, what is placed is inside the window, aligned and disjoint."""
    space = AddressSpace()
    window = space.add_window("w", 0x1_0010, 0x6000)
    placed = []
    for number, (size, align) in enumerate(wanted):
        try:
            placed.append((space.allocate_mmio("w", str(number), size, align), align))
        except InternalError:
            continue
    for region, align in placed:
        assert region.kind is Kind.MMIO
        assert region.base % align == 0
        assert window.base <= region.base
        assert region.end <= window.end
    ordered = sorted((region for region, _ in placed), key=lambda region: region.base)
    for below, above in itertools.pairwise(ordered):
        assert below.end <= above.base
