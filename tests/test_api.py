"""What other people's projects type: names, signatures and defaults, held against api.txt; and their docstrings."""

import difflib
import inspect
import os
import re
from pathlib import Path
from typing import Literal, get_origin

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lit_cosine
from lit_cosine.audit import Finding
from lit_cosine.cli import main as cli
from lit_cosine.comparison._results import Comparison, Row
from lit_cosine.comparison._statistics import Mean, PairedDifference

SNAPSHOT = Path(__file__).with_name("api.txt")
PUBLIC = {name: getattr(lit_cosine, name) for name in lit_cosine.__all__}
RETURNED = {cls.__name__: cls for cls in (Comparison, Row, Mean, PairedDifference, Finding)}
NOT_RUN = ("train", "test", "predict")
"""Subcommands whose --help imports lightning, and whose options below the top level are the classes' own."""


def optimizer():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


# what torch and Lightning name on an instance is their contract
THEIRS = {
    torch.optim.lr_scheduler.LRScheduler: lambda: torch.optim.lr_scheduler.LambdaLR(optimizer(), lambda step: 1.0),
    pl.Callback: pl.Callback,
    ModelCheckpoint: ModelCheckpoint,
    torch.nn.Module: torch.nn.Module,
    pl.LightningModule: pl.LightningModule,
    pl.LightningDataModule: pl.LightningDataModule,
    object: object,
}
MADE = {"ScheduleLR": lambda: lit_cosine.ScheduleLR(optimizer(), lit_cosine.Cosine(), total_steps=10)}
"""How to make an instance, whose attributes are public too; all others come without arguments."""


def parameters(function):
    """One string for each parameter, as one would write it."""
    signature = inspect.signature(function)
    written = []
    starred = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            written.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = stars + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {getattr(parameter.default, '__name__', None) or repr(parameter.default)}"
        written.append(text)
    return written


def annotation(value):
    return value if isinstance(value, str) else inspect.formatannotation(value)


def call(function):
    returns = inspect.signature(function).return_annotation
    arrow = "" if inspect.isclass(function) or returns is inspect.Signature.empty else f" -> {annotation(returns)}"
    return f"({', '.join(parameters(function))}){arrow}"


def base_of(cls, known=()):
    """The nearest base class that has a contract of its own: torch's, Lightning's, or one of ``known``."""
    return next(base for base in cls.__mro__[1:] if base in THEIRS or base in known)


def members(cls):
    """Name -> descriptor of what ``cls`` adds in public to its base class, fields aside."""
    base = base_of(cls, PUBLIC.values())
    between = cls.__mro__[: cls.__mro__.index(base)]
    names = {name for each in between for name in vars(each) if not name.startswith("_")}
    kept = names - {*dir(base)} - {*getattr(cls, "__dataclass_fields__", ())}
    return {name: inspect.getattr_static(cls, name) for name in sorted(kept)}


def described(name, cls):
    """One line for the class and one for each of its members."""
    base, witness = base_of(cls, PUBLIC.values()), base_of(cls)
    yield f"{name}{call(cls)}" + ("" if base is object else f"  # a {base.__name__}")
    known = members(cls)
    for member, value in known.items():
        if isinstance(value, property):
            yield f"{name}.{member} -> {annotation(inspect.signature(value.fget).return_annotation)}"
        else:
            value = getattr(cls, member)
            yield f"{name}.{member}{call(value) if callable(value) else ''}"
    if witness is object:
        return  # a value: its fields are its arguments
    made = attributes(MADE.get(name, cls)()) - attributes(THEIRS[witness]()) - {*dir(base)} - {*known}
    if base is not witness:
        made -= attributes(MADE.get(base.__name__, base)())
    yield from (f"{name}.{attribute}" for attribute in sorted(made))


def attributes(instance):
    kept = {**vars(instance), **vars(instance).get("_modules", {})}
    return {name for name in kept if not name.startswith("_")}


def literals(functions):
    """The closed sets of words that signatures name."""
    for function in functions:
        words = " ".join(parameters(function))
        module = inspect.getmodule(function)
        for name in re.findall(r"\b[A-Z]\w+", words):
            if get_origin(getattr(module, name, None)) is Literal:
                yield f"{name} = {' | '.join(map(repr, getattr(module, name).__args__))}"


def arguments(shown):
    """The positional arguments and long options that a --help shows."""
    for line in shown.splitlines():
        what = re.split(r"\s{2,}", line.strip())[0]
        if line.startswith("  -"):
            yield from re.findall(r"--[\w.-]+", what)
        elif re.match(r"  [A-Z]+  ", line):
            yield what


def current(capsys):
    lines = ["# lit_cosine"]
    for name, value in PUBLIC.items():
        lines += described(name, value) if inspect.isclass(value) else [f"{name}{call(value)}"]
    lines += ["", "# what these return"]
    for name, value in RETURNED.items():
        lines += described(name, value)
    called = [*PUBLIC.values(), *RETURNED.values()]
    called += [getattr(cls, name) for cls in called if inspect.isclass(cls) for name in members(cls)]
    lines += ["", "# words", *sorted({*literals(value for value in called if callable(value))})]
    lines += ["", "# lit-cosine"]
    cli.main(["--help"])
    shown = capsys.readouterr().out
    lines.append(f"lit-cosine {' '.join(re.findall(r'--[a-z]+', shown.splitlines()[0]))}")
    for command in re.findall(r"^  (\w+)  ", shown, re.MULTILINE):
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--help"])
        assert stopped.value.code == 0
        found = {*arguments(capsys.readouterr().out)}
        if command in NOT_RUN:
            found = {option.partition(".")[0] for option in found}
        lines += [f"lit-cosine {command} {option}" for option in sorted(found)]
    return "\n".join(lines) + "\n"


def test_the_public_api_is_the_one_in_the_snapshot(capsys):
    """LIT_COSINE_API=write writes api.txt anew."""
    found = current(capsys)
    if os.environ.get("LIT_COSINE_API") == "write":
        SNAPSHOT.write_text(found, encoding="utf-8")
    kept = SNAPSHOT.read_text(encoding="utf-8")
    difference = "\n".join(difflib.unified_diff(kept.splitlines(), found.splitlines(), "api.txt", "now", "", "", 0, ""))
    assert found == kept, (
        f"the public API has changed:\n{difference}\n"
        "If it is meant, it needs a line in CHANGELOG.md and a version (what goes or changes its meaning, a major one; "
        "what is new, a minor one); then LIT_COSINE_API=write pytest tests/test_api.py -n 0 writes api.txt anew."
    )


CALLABLE = {name: value for name, value in (PUBLIC | RETURNED).items() if callable(value)}
METHODS = {
    f"{name}.{member}": getattr(cls, member)
    for name, cls in CALLABLE.items()
    if inspect.isclass(cls)
    for member in members(cls)
    if callable(getattr(cls, member))
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    assert ">>> " in inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("name", CALLABLE | METHODS)
def test_every_parameter_is_described(name):
    function = (CALLABLE | METHODS)[name]
    doc = inspect.getdoc(function)
    wanted = [re.match(r"\*{0,2}(\w+)", text) for text in parameters(function)]
    names = [match[1] for match in wanted if match and match[1] not in ("self", "cls")]
    if inspect.isabstract(function):  # the arguments are those of its subclasses
        names = []
    if name in METHODS:  # a method of one argument may say it in its sentence
        assert [word for word in names if not re.search(rf"\b{word}\b", doc)] == []
    else:
        section = re.search(r"^(Args|Attributes):\n((?:  .*\n|\n)+)", doc + "\n", re.MULTILINE)
        line = r"^    \*{0,2}(\w+)(?: \(.*\))?: "  # each has a line of its own, which --help shows
        assert (re.findall(line, section[2], re.MULTILINE) if section else []) == names


@pytest.mark.parametrize("name", CALLABLE | METHODS)
def test_what_comes_back_is_said(name):
    function = (CALLABLE | METHODS)[name]
    if inspect.isclass(function):
        return
    returns = inspect.signature(function).return_annotation
    assert returns in (None, "None") or re.search(r"\breturns?\b", inspect.getdoc(function), re.IGNORECASE)


@pytest.mark.parametrize("name", [name for name, value in (CALLABLE | METHODS).items() if not inspect.isclass(value)])
def test_what_it_raises_is_said(name):
    function = (CALLABLE | METHODS)[name]
    raises = re.search(r"^ +raise \w+Error", inspect.getsource(function), re.MULTILINE)
    assert not raises or "Raises:" in inspect.getdoc(function)
