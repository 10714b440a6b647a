"""Random options of every command with random values: status 2 and one short line, or a status of success."""

import inspect
import io
import re
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lit_cosine import SyntheticDataModule
from lit_cosine.cli.main import main

# what a command is given besides, so that it neither trains nor serves; audit builds every run and trains none
BESIDES = {
    "audit": [],
    "board": ["nowhere"],
    "compare": ["--schedules", "nowhere.yaml"],
    "predict": ["--ckpt_path", "nowhere.ckpt"],
    "preview": ["Cosine"],
    "test": ["--ckpt_path", "nowhere.ckpt"],
    "train": ["--trainer.max_epochs", "0"],
}
API = (Path(__file__).parents[1] / "api.txt").read_text().splitlines()
OPTIONS = {
    command: sorted({line.split()[2] for line in API if line.startswith(f"lit-cosine {command} --")})
    for command in BESIDES
}


def below():
    """Return the options of the groups, which a help of its own lists."""
    out = io.StringIO()
    for group in ("model", "data", "trainer"):
        with redirect_stdout(out), suppress(SystemExit):
            main(["audit", f"--help.{group}"])
    listed = {*re.findall(r"^  (--(?:model|data|trainer)\.[\w.]+)", out.getvalue(), re.MULTILINE)}
    return sorted(listed | {f"--data.{name}" for name in inspect.signature(SyntheticDataModule).parameters})


BIG = "1000000000000"
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    st.integers(-3, 3).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["x" * 100_000, "two\nlines", "null", "true", "{}", "{a: b}", "[[[[", "9" * 40, str(2**63), BIG, f"{BIG}step",
         "5%", "500step", "30min", "Cosine", "lit_cosine.SimpleNN", "lit_cosine.Nowhere", "os.system", "/", "../..",
         "nowhere/x", "\x00", "&a [*a]", "!!python/object/apply:os.system [ls]", "--", "=", "[0.5, 0.6]", "raise",
         "{class_path: Cosine, init_args: {end: -1}}", "{class_path: Cosine, init_args: {end: 0.1}}"]
    ),
)  # fmt: skip


@st.composite
def lines(draw, of_groups):
    command = draw(st.sampled_from(sorted(BESIDES)))
    options = OPTIONS[command] + (of_groups if command in ("audit", "train", "test", "predict") else [])
    given = draw(st.lists(st.tuples(st.sampled_from(options), VALUES), min_size=1, max_size=2))
    # several processes run this test's own command line again, several nodes wait for each other
    assume(
        not any(
            option in ("--trainer.devices", "--trainer.num_nodes") and value in ("2", "3") for option, value in given
        )
    )
    return [command, *BESIDES[command], *(f"{option}={value}" for option, value in given)]


def check(line):
    out, err, started = io.StringIO(), io.StringIO(), time.process_time()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main(line)
    except SystemExit as stop:
        status = stop.code
    said = [text for text in err.getvalue().splitlines() if text.startswith("lit-cosine")]
    assert status in (0, 2) or (status == 1 and line[0] == "audit")
    assert "Traceback" not in err.getvalue()
    if status == 2:
        assert len(said) == 1
        assert len(said[0]) < 300
    assert time.process_time() - started < 10.0


quick = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_any_option_gets_a_result_or_one_short_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_groups = below()
    assert {"--trainer.max_epochs", "--data.n_samples", "--model.lr"} < {*of_groups}
    settings(max_examples=500, **quick)(given(lines(of_groups))(check))()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # that the audit stopped
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--trainer.max_epochs", BIG), ("--trainer.max_steps", BIG), ("--data.n_samples", BIG),
        ("--data.n_features", BIG), ("--data.batch_size", BIG), ("--model.network.hidden", BIG),
        ("--model.warmup", f"{BIG}step"),
    ],
)  # fmt: skip
def test_sizes_beyond_any_machine_are_answered_at_once(option, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(["audit", option, value])
