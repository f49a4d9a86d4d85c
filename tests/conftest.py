"""For all tests."""

import os
import resource
import signal

from hypothesis import settings

# Guests, services and trees of the tests hold many files; a shell's soft limit is often 1,024.
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

# Tests that hang up on something need hangups not to be ignored, as they are under nohup(1).
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
