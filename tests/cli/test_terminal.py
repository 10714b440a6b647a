import re

import pytest

from lit_cosine import Cosine, Step
from lit_cosine.cli._terminal import chart


def dots(drawing, width, height):
    """Return the dots (x, y from the top) of a Braille drawing, read by the Unicode standard's numbering."""
    position = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (0, 3), 7: (1, 3)}
    found = set()
    for row, line in enumerate(drawing.splitlines()[:height]):
        for column, glyph in enumerate(line.partition("│")[2].ljust(width)):
            code = ord(glyph) - 0x2800
            found |= {
                (2 * column + x, 4 * row + y) for bit, (x, y) in position.items() if glyph != " " and code >> bit & 1
            }
    return found


def test_every_dot_lies_on_the_curve_and_every_column_has_one():
    width, height = 40, 10
    cosine = Cosine()
    found = dots(chart({"c": lambda x: cosine(x / 1000)}, 1000, width=width, height=height), width, height)
    assert {x for x, _ in found} == set(range(2 * width))
    for x, y in found:
        value = 1 - y / (4 * height - 1)
        assert cosine((x + 1) / (2 * width)) - 0.02 <= value <= cosine(x / (2 * width)) + 0.02


def test_a_jump_is_a_vertical_line_and_the_levels_are_level():
    width, height = 20, 5
    step = Step(gamma=0.0, milestones=(0.5,))
    found = dots(chart({"s": lambda x: step(x / 100)}, 100, width=width, height=height), width, height)
    assert {y for x, y in found if x < 18} == {0}
    assert {y for x, y in found if x > 21} == {19}
    assert {y for x, y in found if 18 <= x <= 21} == set(range(20))


def test_a_dense_curve_shows_its_height_and_short_runs_are_drawn():
    sawtooth = chart({"saw": lambda x: x % 7 / 6}, 10_000, width=20, height=4, ascii_only=True)
    assert all(line.endswith("|" + "*" * 20) for line in sawtooth.splitlines()[:4])
    assert "*" in chart({"one": lambda x: 1.0 - x}, 1, width=20, height=4, ascii_only=True)


def test_a_curve_at_zero_is_drawn_on_the_floor():
    lines = chart({"zero": lambda x: 0.0}, 10, width=20, height=4, ascii_only=True).splitlines()
    assert lines[3].endswith("*" * 20)
    assert "*" not in "".join(lines[:3])


@pytest.mark.parametrize("colour", [False, True])
def test_several_curves_carry_their_letters(colour):
    drawing = chart({"flat": lambda x: 1.0, "low": lambda x: 0.2}, 100, width=40, height=8, colour=colour)
    plain = re.sub(r"\x1b\[\d+m", "", drawing)
    assert (plain != drawing) == colour
    lines = plain.splitlines()
    assert lines[0].count("A") == 3
    assert sum(line.count("B") for line in lines[1:8]) == 3
    assert lines[-2:] == ["  A  flat", "  B  low"]
    if colour:
        assert "\x1b[36m" in drawing
        assert "\x1b[33m" in drawing
