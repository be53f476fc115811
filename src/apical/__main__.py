"""``python -m apical``: the command line."""

import sys

from apical.bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
