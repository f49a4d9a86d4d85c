"""Captured VMs on disk: a directory each, below <data>/snapshots.

    NAME/memory          the guest's RAM, page n at byte n * 4096; pages of zeroes are holes
    NAME/memory.sums     32 bytes for each CHUNK of it: its SHA-256, zeroes for a hole
    NAME/memory.pages    which pages it has, when it builds on others; then their files are here, too:
    NAME/parent-N.*      parent-0.memory the lowest
    NAME/state.msgpack   {"vm": what vmm said, "fsd": what fsd said}
    NAME/layer.index     what the guest has written, as one more layer over the image's
    NAME/layer.contents
    NAME/image-N.*       the image's layers, when the snapshot came from elsewhere
    NAME/manifest.json   what all this is, with sizes and checksums, its own included
    NAME/trusted         what its files were like when every byte had been looked at
    .tmp-XXXX/           one being made or removed: locked by who does, swept when nobody has

Everything appears by rename, complete and durable. Locks are flock on the directories: shared while a
VM uses it, exclusive to remove it. `manifest` says what is valid, `store` finds, makes and removes,
`verify` looks at every byte, `archive` is one file of it.
"""
