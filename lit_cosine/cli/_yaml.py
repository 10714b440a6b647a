"""YAML files from the command line: read with limits, and refused in one sentence that names file and line.

Convention: a configuration is small. What aliases expand to counts in full, so that no short file fills the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_cosine._checks import shown

__all__ = ["lines_of", "parse_yaml", "read_yaml"]

_MOST_BYTES = 2**20
_MOST_VALUES = 100_000
_DEEPEST = 100


@dataclass
class _Collection:
    """A list or a mapping that has begun."""

    anchor: str | None
    keys: set[str] | None
    values: int = 1
    at_key: bool = True


def read_yaml(path: str | Path) -> Any:
    """Return the contents of a YAML file.

    Raises:
        ValueError: If the file cannot be read, is not YAML, is too large, too deep or cyclic, or has a key twice.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    if len(text) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES:,} characters, which no configuration is")
    return parse_yaml(text, str(path))


def lines_of(path: str | Path, key: str) -> list[int]:
    """Return the lines of a YAML file that hold ``key``, dotted, as a whole or as the end of a longer one."""
    read_yaml(path)  # within its limits the loop ends
    found = []
    left = [("", yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader))]
    for name, node in left:
        if isinstance(node, yaml.SequenceNode):
            left += [(name, item) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            for inner, value in node.value:
                below = name if inner.value == "init_args" else f"{name}.{inner.value}"
                left.append((below, value))
                if below != name and below.endswith(f".{key}"):
                    found.append(inner.start_mark.line + 1)
    return found


def parse_yaml(text: str, name: str) -> Any:
    """Return what the YAML ``text`` holds; ``name`` is what a message calls it."""
    try:
        _check(text, name)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "unreadable"
        raise ValueError(f"{name} is not YAML{f', see line {mark.line + 1}' if mark else ''}: {problem}") from None
    except (ValueError, RecursionError) as error:  # an integer of more digits than Python converts, a date of month 13
        raise error if name in str(error) else ValueError(f"{name}: {error}") from None


def _check(text: str, name: str) -> None:
    """Refuse what would take long to build. Looks at YAML's events one by one, without recursion."""
    collections = [_Collection(None, None)]
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{name}, line {getattr(event.start_mark, 'line', 0) + 1}"
        if isinstance(event, yaml.CollectionEndEvent):
            done = collections.pop()
            if done.anchor:
                sizes[done.anchor] = done.values
            collections[-1].values += done.values
        elif isinstance(event, yaml.NodeEvent):
            parent = collections[-1]
            if isinstance(event, yaml.ScalarEvent) and parent.keys is not None and parent.at_key:
                if event.value in parent.keys:
                    raise ValueError(f"{where}: the key {shown(event.value)} stands twice")
                parent.keys.add(event.value)
            parent.at_key = not parent.at_key
            if isinstance(event, yaml.AliasEvent):
                if event.anchor in {collection.anchor for collection in collections}:
                    raise ValueError(f"{where}: the value {shown(event.anchor)} contains itself")
                parent.values += sizes.get(str(event.anchor), 1)
            elif isinstance(event, yaml.ScalarEvent):
                parent.values += 1
                if event.anchor:
                    sizes[event.anchor] = 1
            else:
                keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
                collections.append(_Collection(event.anchor, keys))
        if len(collections) > _DEEPEST:
            raise ValueError(f"{where}: values are nested more than {_DEEPEST} deep")
        if collections[-1].values > _MOST_VALUES:
            raise ValueError(f"{where}: the file describes more than {_MOST_VALUES:,} values")
