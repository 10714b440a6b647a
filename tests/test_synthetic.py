import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_classification

import lit_cosine.synthetic
from lit_cosine.synthetic import classification


@st.composite
def arguments(draw):
    """Any arguments that make_classification takes."""
    informative = draw(st.integers(1, 6) | st.just(11) | st.just(33))
    classes = draw(st.integers(2, min(5, 2**informative)))
    redundant, repeated = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    features = informative + redundant + repeated + draw(st.integers(0, 4))
    several = st.lists(st.floats(-3, 3), min_size=features, max_size=features)
    clusters = draw(st.integers(1, min(4, 2**informative // classes)))
    weights = None
    if draw(st.booleans()):
        weights = [1 / (classes + k) for k in range(draw(st.sampled_from([classes, classes - 1])))]
        weights = [weight / sum(weights) * (1.0 if len(weights) == classes else 0.8) for weight in weights]
    return {
        "n_samples": draw(st.integers(1, 60)),
        "n_features": features,
        "n_informative": informative,
        "n_redundant": redundant,
        "n_repeated": repeated,
        "n_classes": classes,
        "n_clusters_per_class": clusters,
        "weights": weights,
        "flip_y": draw(st.floats(0, 1)),
        "class_sep": draw(st.floats(0.01, 3)),
        "hypercube": draw(st.booleans()),
        "shift": draw(st.none() | st.floats(-3, 3) | several),
        "scale": draw(st.none() | st.floats(0.01, 3) | several),
        "shuffle": draw(st.booleans()),
        "random_state": draw(st.integers(0, 2**32 - 1)),
    }


@settings(max_examples=150)
@given(arguments())
def test_the_rows_are_scikit_learns_bit_for_bit(arguments):
    for ours, theirs in zip(classification(**arguments), make_classification(**arguments), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@settings(max_examples=40)
@given(arguments(), st.integers(1, 70))
def test_in_blocks_they_are_to_the_rounding_of_a_float32(arguments, block):
    before, lit_cosine.synthetic.BLOCK = lit_cosine.synthetic.BLOCK, block
    try:
        x, y = classification(**arguments)
    finally:
        lit_cosine.synthetic.BLOCK = before
    theirs, labels = make_classification(**arguments)
    np.testing.assert_array_equal(y, labels)
    assert x.dtype == (np.float32 if arguments["n_samples"] > block else np.float64)
    np.testing.assert_allclose(x, theirs, rtol=1e-6, atol=1e-5 * max(1.0, np.abs(theirs).max()))


PEAK = """
import sys
from lit_cosine import SyntheticDataModule
import torch
SyntheticDataModule(n_samples=70_000).setup()  # everything that is imported on the way

def peak():  # of this program alone: getrusage also counts what the process was before it became this program
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

before = peak()
data = SyntheticDataModule(n_samples=int(sys.argv[1]), standardize=sys.argv[2] == "True")
data.setup()
print((peak() - before) / (int(sys.argv[1]) * 20 * 4))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read where Linux keeps it")
@pytest.mark.parametrize("standardize", [False, True])
def test_the_peak_of_memory_is_at_most_two_and_a_half_times_the_data(standardize):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, "1000000", str(standardize)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert 1.0 < float(done.stdout) <= 2.5
