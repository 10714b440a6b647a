"""Schedules put to the test: `python scripts/compare.py` is `lit-cosine compare`."""

import sys

from lit_cosine.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
