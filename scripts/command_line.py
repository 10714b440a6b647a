#!/usr/bin/env python
"""The options of every command, from its parser: ``python scripts/command_line.py`` writes docs/_options.md."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

PAGE = Path(__file__).parents[1] / "docs" / "_options.md"
HELP = {
    "": ["--help"],
    "train": ["--help", "--help.model", "--help.checkpoint"],
    "test": ["--help"],
    "predict": ["--help"],
    "audit": ["--help"],
    "preview": ["--help"],
    "compare": ["--help"],
    "board": ["--help"],
}
"""The command, and the options that print what it takes."""


def printed(*arguments: str) -> str:
    """Return what the command prints, on a terminal of 100 columns."""
    from lit_cosine.cli.main import main

    out = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}), redirect_stdout(out), suppress(SystemExit):
        main([*arguments])
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def page() -> str:
    """Return the page: a section for each command, a block for each help."""
    parts = ["<!-- written by python scripts/command_line.py -->"]
    for command, options in HELP.items():
        if command:
            parts.append(f"### `lit-cosine {command}`")
        for option in options:
            line = " ".join(filter(None, ("lit-cosine", command, option)))
            parts.append(f"```text\n$ {line}\n{printed(*filter(None, (command, option)))}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"docs/{PAGE.name}")
