"""What /dev/kvm is worth on this host, and what to do where it is worth nothing."""
