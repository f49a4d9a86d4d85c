"""The chipset: an immutable set of named devices, their MMIO ranges and interrupt lines."""
