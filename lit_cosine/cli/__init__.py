"""The ``lit-cosine`` command: one module a subcommand."""
