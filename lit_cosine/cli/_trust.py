"""What a run's config.yaml may name without ``--trust``.

Convention: jsonargparse imports what a configuration names. A class path is accepted if it is a class of lit_cosine or
torch.nn, or a callback or logger of Lightning. Any other string that names something importable, or a further file, is
refused, so that resuming a run folder from elsewhere runs no code of its author.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_cosine._checks import shown
from lit_cosine.cli._yaml import parse_yaml, read_yaml

__all__ = ["check_trusted"]

_PACKAGES = ("lit_cosine", "torch.nn", "lightning.pytorch.callbacks", "lightning.pytorch.loggers")
_ENOUGH = 2**20
"""Characters that are read to decide whether a file is text."""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def check_trusted(path: Path) -> None:
    """Refuse a run's configuration that names code or files outside of lit_cosine, torch.nn and Lightning."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold options by name, got {shown(content)}")
    for where, value in _strings(content, ""):
        # of a class path without a dot, jsonargparse knows only the classes that are already imported
        dotted = _DOTTED.fullmatch(value) is not None
        if dotted and _is_known_class(value):
            continue
        names_code = where.endswith("class_path") and "." in value
        if names_code or (dotted and _is_importable(value)) or _is_file(value, path.parent):
            raise ValueError(
                f"{path} names {shown(value)} at {shown(where)}, which could run code: add --trust if you trust the "
                "run's origin, or give a configuration of your own with --config"
            )


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value.strip()
        if any(character in value for character in "{[:\n"):  # jsonargparse reads YAML inside strings
            try:
                inner = parse_yaml(value, shown(where))
            except ValueError:
                return
            if isinstance(inner, (dict, list)):
                yield from _strings(inner, where)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple, set)):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{where}[{index}]")


def _is_known_class(path: str) -> bool:
    """Return whether ``path`` is a class of one of the known packages, among modules that are already imported."""
    if not path.startswith(tuple(f"{package}." for package in _PACKAGES)):
        return False
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and found.__module__.startswith(_PACKAGES)


def _is_importable(path: str) -> bool:
    top = path.partition(".")[0]
    try:
        return top in sys.modules or find_spec(top) is not None
    except (ImportError, ValueError):
        return True


def _is_file(value: str, folder: Path) -> bool:
    """Return whether jsonargparse could read ``value`` as a further configuration: text, a pipe or a device."""
    for base in (folder, Path.cwd()):
        path = Path(base, value)
        try:
            if path.is_file():
                with path.open(encoding="utf-8") as file:
                    file.read(_ENOUGH)
        except (OSError, ValueError):  # bytes that are no text, longer than a path can be
            continue
        if path.exists() and not path.is_dir():
            return True
    return False
