"""The host's side of the guest's agent: processes and files, over one virtio-console port."""
