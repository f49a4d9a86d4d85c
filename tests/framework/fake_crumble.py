"""The `crumble` command over the fake services: `python -m framework.fake_crumble VERB ...`."""

import sys

from crumble.cli.main import main
from crumble.supervisor import table
from framework.fake_services import TABLE

table.TABLE.update(TABLE)

if __name__ == "__main__":
    sys.exit(main())
