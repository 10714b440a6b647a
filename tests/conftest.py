"""One thread a test process (they run side by side), Hypothesis without a clock, and no seed of an earlier test."""

import os
import signal

import pytest
import torch
from hypothesis import settings

collect_ignore = [
    "helpers/typed_user.py",  # for type checkers: half of it is wrong on purpose
    "helpers/chemprop_module.py",  # imports chemprop, of the extra published
]

torch.set_num_threads(1)
# a shell that starts the tests in the background has them, and every program they start, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("lit_cosine", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lit_cosine"))


@pytest.fixture(autouse=True)
def _no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps the seed of a run in the environment, where it would silence the warning of a run without one."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
