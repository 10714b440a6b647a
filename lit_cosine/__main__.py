"""``python -m lit_cosine``: the ``lit-cosine`` command."""

import sys

from lit_cosine.cli.main import main

sys.exit(main())
