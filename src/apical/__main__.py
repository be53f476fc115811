"""``python -m apical``: the command line."""

import sys

from apical.cli import main

if __name__ == "__main__":
    sys.exit(main())
