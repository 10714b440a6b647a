"""One thread a test process (they run side by side), and Hypothesis without a clock: the machine may be busy."""

import os
import signal

import torch
from hypothesis import settings

collect_ignore = ["helpers/typed_user.py"]  # for type checkers: half of it is wrong on purpose

torch.set_num_threads(1)
# a shell that starts the tests in the background has them, and every program they start, ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("lit_cosine", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lit_cosine"))
