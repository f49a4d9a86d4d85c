"""For all tests."""

import resource

# Guests, services and trees of the tests hold many files; a shell's soft limit is often 1,024.
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
