"""One module a benchmark; each measures a peer beside us in the same run.

They drive what the tests do, with the tests' framework.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
