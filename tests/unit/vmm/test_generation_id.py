"""The generation ID device."""

from crumble_vmm.chipset.lines import Line, Trigger
from crumble_vmm.devices.generation_id import GenerationId


def test_every_vm_has_its_own_and_a_restored_one_says_so() -> None:
    levels: list[bool] = []
    line = Line("generation", 12, Trigger.LEVEL, lambda _number, level: levels.append(level))
    first, second = GenerationId("generation", line), GenerationId("generation", line)
    whole = [each.mmio_read(0, 8) | each.mmio_read(8, 8) << 64 for each in (first, second)]
    assert whole[0] != whole[1]
    assert first.mmio_read(3, 1) == whole[0] >> 24 & 0xFF
    first.mmio_write(0, 8, 0)
    assert first.mmio_read(0, 8) == whole[0] & (1 << 64) - 1
    assert not any(levels)
    second.set_state(first.get_state())
    assert levels[-1]
    second.mmio_read(0, 8)
    assert not levels[-1]
    assert second.mmio_read(16, 8) == 0
