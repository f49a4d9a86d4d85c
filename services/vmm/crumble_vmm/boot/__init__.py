"""Boot: kernel loaders, the flattened device tree, the initramfs and kernel modules."""
