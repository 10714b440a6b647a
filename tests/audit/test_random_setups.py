"""Set-ups drawn at random, each trained: the audit names the wrong ones and is silent about the right ones."""

import pytest

from tests.helpers.random_setups import drawn_setups, right, train, wrong

RIGHT, WRONG = drawn_setups(7, right), drawn_setups(8, wrong)


@pytest.mark.parametrize("setup", RIGHT, ids=lambda setup: setup.name)
def test_a_right_setup_is_not_accused(setup):
    findings, lrs, error = train(setup)
    assert error is None
    assert min(lrs) >= 0
    assert findings == []


@pytest.mark.parametrize("setup", WRONG, ids=lambda setup: setup.name)
def test_a_wrong_setup_is_named(setup):
    findings, lrs, error = train(setup)
    assert setup.witness(lrs, error)
    if setup.expected:
        assert set(findings) & set(setup.expected)
    else:  # what the audit cannot know, it does not guess
        assert findings == []


def test_there_are_enough():
    assert len(RIGHT) >= 30
    assert len(WRONG) >= 30
