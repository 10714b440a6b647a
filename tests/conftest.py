"""One thread a test process (they run side by side), and Hypothesis without a clock: the machine may be busy."""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("lit_cosine", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lit_cosine"))
