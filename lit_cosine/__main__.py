"""``python -m lit_cosine``: the ``lit-cosine`` command."""

import sys

from lit_cosine.cli.main import main

if __name__ == "__main__":  # not in a process that a spawning strategy starts
    sys.exit(main())
