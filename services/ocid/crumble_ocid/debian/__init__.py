"""The Debian archive: what the host's apt would fetch and trust, and images and kernels made of it."""
