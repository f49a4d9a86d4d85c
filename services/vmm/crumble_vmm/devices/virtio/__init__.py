"""Virtio devices and their MMIO transport (virtio 1.2)."""
