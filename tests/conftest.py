"""For all tests."""

import os
import resource
import signal

from hypothesis import settings

# Guests, services and trees of the tests hold many files; a shell's soft limit is often 1,024.
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

# Tests send signals that whoever started this may have had ignored: nohup(1), or a shell in the background.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# A mirror that takes its time is not what is tested.
os.environ.setdefault("CRUMBLE_NETWORK_TIMEOUT", "120")

# The same examples in every run; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
