"""The article's training: `python scripts/train.py` is `lit-cosine train`."""

import sys

from lit_cosine.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
