"""Networks with names: what they are, kept in files; they run when a VM is on them."""
