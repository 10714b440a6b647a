import csv
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch import nn

from lit_cosine import Constant, Cosine, SimpleNN, TabularDataModule, compare_networks
from lit_cosine.cli.main import main
from lit_cosine.comparison import Comparison
from lit_cosine.comparison._figure import draw
from lit_cosine.comparison._report import table, write


@pytest.fixture(scope="module")
def found() -> Comparison:
    schedules = {"constant": Constant(), "cosine": Cosine(end=0.1)}
    data = TabularDataModule("iris", batch_size=40)
    return compare_networks(lambda: SimpleNN(4, 8, 3), data, schedules, [0.1, 0.01], 3, 2, engine="serial")


@pytest.fixture(scope="module")
def written(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    columns = {"data": "one", "network_size": 67}
    return write(found, tmp_path_factory.mktemp("written"), columns=columns)


def test_the_files_hold_the_comparison(found: Comparison, written: dict[str, Path]) -> None:
    paths = written
    members = list(csv.DictReader(paths["members.csv"].read_text().splitlines()))
    assert len(members) == 12
    for member in members:
        place = (
            int(member["seed"]),
            list(found.schedules).index(member["schedule"]),
            found.lrs.index(float(member["lr"])),
        )
        assert float(member["test_loss"]) == found.members["test_loss"][place]
        assert float(member["val_loss"]) == found.members["val_loss"][place][-1]
    rows = list(csv.DictReader(paths["table.csv"].read_text().splitlines()))
    assert len(rows) == len(found.finals) * (2 + 4)
    best = next(row for row in rows if row["schedule"] == "cosine" and row["at"] == "best lr")
    witness = found.table()[1]
    assert float(best["mean"]) == witness.mean.value
    assert float(best["p_holm"]) == witness.difference.p
    results = json.loads(paths["results.json"].read_text())
    assert results["description"] == found.description
    assert len(results["tables"]) == 12
    curves = list(csv.DictReader(paths["curves.csv"].read_text().splitlines()))
    first = found.members["train_loss"][:, 0, 0, 0].mean()
    assert float(curves[0]["train_loss"]) == pytest.approx(first, rel=1e-12)
    assert [int(row["step"]) for row in curves[:2]] == [3, 6]


def test_writing_twice_gives_the_same_files(found: Comparison, written: dict[str, Path], tmp_path: Path) -> None:
    one, two = written, write(found, tmp_path / "two")
    for name in ("table.csv", "members.csv", "curves.csv", "results.json", "figure.png"):
        assert one[name].read_bytes() == two[name].read_bytes()


def test_tensorboard_has_a_run_for_each_schedule_with_its_lr_beside_its_loss(
    found: Comparison, written: dict[str, Path]
) -> None:
    folder = written["tensorboard"]
    best = found.best_index("cosine")
    runs = {path.name.partition(" lr=")[0]: path for path in folder.iterdir()}
    assert sorted(runs) == ["constant", "cosine"]
    assert runs["cosine"].name == f"cosine lr={found.lrs[best]:g}"
    events = EventAccumulator(str(runs["cosine"]), size_guidance={"scalars": 0}).Reload()
    lrs = [event.value for event in events.Scalars("lr")]
    assert lrs == pytest.approx([found.lrs[best] * Cosine(end=0.1)(k / 6) for k in range(6)], rel=1e-6)
    val = found.members["val_loss"][:, 1, best].mean(axis=0)
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [
        (step, pytest.approx(value, rel=1e-6)) for step, value in zip((2, 5), val, strict=True)
    ]
    tested = found.members["test_accuracy"][:, 1, best].mean()
    assert [event.value for event in events.Scalars("test/accuracy")] == [pytest.approx(tested, rel=1e-6)]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert "comparison" in EventAccumulator(str(runs["constant"])).Reload().Tags()["images"]


def test_every_comparison_has_rows_of_its_own_in_hparams_that_say_what_was_trained(
    found: Comparison, written: dict[str, Path], tmp_path: Path
) -> None:
    rows = {}
    two = write(found, tmp_path, columns={"data": "two", "network_size": 67})
    for paths in (written, two):  # served together: rows of one name would be one
        for run in paths["tensorboard"].iterdir():
            content = EventAccumulator(str(run)).Reload().SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data
            row = metadata.parse_session_start_info_plugin_data(content.content)
            assert row.group_name.startswith(f"{run.name} (")
            cells = {name: value.string_value or value.number_value for name, value in row.hparams.items()}
            rows[row.group_name] = cells
    assert len(rows) == 4
    assert {row["data"] for row in rows.values()} == {"one", "two"}
    for row in rows.values():
        assert row["lr"] in found.lrs
        assert (row["network_size"], row["epochs"], row["batch_size"], row["warmup"]) == (67, 2, 40, "0step")


def test_the_figure_has_its_four_panels(found: Comparison) -> None:
    lrs, losses, initial, heat, _ = draw(found).axes
    np.testing.assert_allclose(lrs.lines[1].get_ydata(), Cosine(end=0.1).sample(6))
    assert len(losses.lines) == 2
    assert initial.lines[0].get_xdata().tolist() == [0.01, 0.1]
    assert initial.lines[0].get_ydata().tolist() == pytest.approx(found.values()[:, 0, [1, 0]].mean(axis=0).tolist())
    assert [text.get_text() for text in heat.get_yticklabels()] == ["constant", "cosine"]
    assert len(heat.texts) == 4
    assert imread(io.BytesIO(found.plot()._repr_png_())).shape == (1000, 1500, 4)  # what Jupyter shows


def test_the_heat_map_is_of_floors_where_there_are_floors(found: Comparison) -> None:
    floors = {"a": Cosine(), "b": Cosine(end=0.3)}
    data = TabularDataModule("iris", batch_size=40)
    swept = compare_networks(lambda: SimpleNN(4, 8, 3), data, floors, [0.1], 2, 1, engine="serial")
    assert [text.get_text() for text in draw(found, swept).axes[3].get_yticklabels()] == ["0", "0.3"]


def cells(test_loss: list[list[float]]) -> Comparison:
    """A comparison of two seeds with the given test losses by schedule and LR."""
    grid = np.array([test_loss] * 2)
    curves = [(name, float, (1,)) for name in ("train_loss", "val_loss", "val_accuracy")]
    members = np.zeros(grid.shape, dtype=[*curves, ("test_loss", float), ("test_accuracy", float)])
    members["test_loss"] = grid
    for name in ("train_loss", "val_loss"):
        members[name] = grid[..., None]
    schedules = {name: Cosine() for name in ("one", "two")[: len(test_loss)]}
    return Comparison(schedules, (0.1, 0.2)[: grid.shape[2]], (0, 1), "one", 5, members, {})


NAN = np.nan


@pytest.mark.parametrize(
    ("test_loss", "shown"),
    [
        ([[0.5]], ["0.500"]),
        ([[0.5], [0.5]], ["0.500"] * 2),
        ([[0.5, NAN], [NAN, NAN]], ["0.500", *["diverged"] * 3]),
        ([[NAN, NAN]], ["diverged"] * 2),
        ([[0.0, 0.0]], ["0"] * 2),
        ([[-1.0, 2.0], [0.0, 12345.0]], ["-1.000", "2.000", "0", "1.23e+04"]),
        ([[1e-300, 1e300]], ["1e-300", "1e+300"]),
        ([[0.5, 9e307], [-9e307, 9.9e306]], ["0.500", *["diverged"] * 3]),
        ([[5e-324], [2e-308]], ["4.94e-324", "2e-308"]),
    ],
    ids=["one cell", "equal", "one finite", "none finite", "zero", "negative", "far apart", "large", "subnormal"],
)
def test_any_cells_can_be_drawn(test_loss: list[list[float]], shown: list[str]) -> None:
    figure = draw(cells(test_loss))
    figure.savefig(io.BytesIO(), dpi=20)  # the layout is computed only now
    if len(test_loss[0]) == 1:  # no panel over one LR
        assert len(figure.axes) == 3
    else:
        assert [text.get_text() for text in figure.axes[3].texts] == shown


def losses_of(lrs: int) -> st.SearchStrategy[list[list[float]]]:
    return st.lists(st.lists(st.floats(), min_size=lrs, max_size=lrs), min_size=1, max_size=2)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 2).flatmap(lambda n: st.lists(st.lists(st.floats(), min_size=n, max_size=n), min_size=1, max_size=2))
)
def test_any_losses_can_be_drawn(test_loss: list[list[float]]) -> None:
    draw(cells(test_loss)).savefig(io.BytesIO(), dpi=20)


def test_the_table_shows_what_diverged_and_that_one_seed_has_no_interval(found: Comparison) -> None:
    def shown(comparison: Comparison) -> str:
        console = Console(width=160, file=io.StringIO())
        with console.capture() as capture:
            console.print(table(comparison))
        return capture.get()

    assert "95 % (Holm)" in shown(found)
    members = found.members.copy()
    members["val_loss"][0] = np.nan
    parts = {**vars(found), "members": members}
    assert "1 of 3" in shown(Comparison(**parts))
    parts = {**vars(found), "members": found.members[:1], "seeds": (0,)}
    assert "95 %" not in shown(Comparison(**parts))
    assert "One seed: differences have no interval" in repr(Comparison(**parts))


@pytest.mark.slow
def test_the_command_writes_its_folder_and_continues_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["compare", "--data", "wine", "--seeds", "2", "--lrs", "0.01", "--max_epochs", "1", "--engine", "serial"]
    assert main([*options, "--folder", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert out.index("Schedules: ") < out.index("test accuracy")
    assert (tmp_path / "run" / "schedules.png").stat().st_size > 10_000
    assert "warmup-stable-decay" in out
    figure = (tmp_path / "run" / "figure.png").read_bytes()
    assert main([*options, "--folder", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "figure.png").read_bytes() == figure
    capsys.readouterr()
    assert main([*options, "--max_epochs", "2", "--folder", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "lit-cosine compare: error: " in error
    assert "holds a different comparison (differs in: max_epochs)" in error


# what the command line alone tells is refused before torch is imported
LIGHT = [
    (["--lrs"], "argument --lrs: expected at least one argument"),
    (["--lrs", "0"], "lrs must be finite and > 0, got 0.0"),
    (["--lrs", "0.1", "nan"], "lrs element 2: Expected a number; Expected one of 'auto'; got nan"),
    (["--lrs", "1e999"], "lrs must be finite and > 0, got inf"),
    (["--lrs", "0.1", "0.10"], "lrs must differ from each other, got [0.1, 0.1]"),
    (["--seeds", "0"], "seeds must be an integer >= 1, got 0"),
    (["--seeds", str(10**12)], "seeds x schedules x lrs x max_epochs must fit into memory; 77000000000000 trainings"),
    (["--seeds", str(10**30)], "seeds must be an integer >= 1 and below 2**63"),
    (["--max_epochs", "0"], "max_epochs must be an integer >= 1, got 0"),
    (["--max_epochs", str(10**12)], "must fit into memory"),
    (["--batch-size", "0"], "batch_size must be an integer >= 1, got 0"),
    (["--workers", "0"], "workers must be an integer >= 1, got 0"),
    (["--splits", "-1"], "splits must be an integer >= 1, got -1"),
    (["--weight-decay", "nan"], "weight_decay: Expected a number. Got value: nan"),
    (["--momentum", "1"], "momentum must be in [0, 1), got 1.0"),
    (["--optimizer", "lion"], "optimizer: Expected one of 'adam', 'adamw', 'sgd'. Got value: lion"),
    (
        ["--data", "mnist"],
        "data: Expected one of 'article', 'harder', 'digits', 'breast_cancer', 'wine', 'char', 'mnist1d'; got mnist",
    ),
    (["--baseline", "nothing"], "baseline must be one of constant, step, exponential"),
    (["--lrz", "1"], "unknown option --lrz; did you mean --lrs?"),
    (["--schedules", "nowhere.yaml"], "cannot read nowhere.yaml: No such file or directory"),
    (["--schedules", "twice.yaml"], "twice.yaml, line 3: the key 'a' stands twice"),
    (["--schedules", "list.yaml"], "list.yaml must hold schedules by name, got ['Cosine']"),
    (["--schedules", "empty.yaml"], "empty.yaml must hold schedules by name, got None"),
    (["--schedules", "broken.yaml"], "broken.yaml is not YAML"),
    (["--schedules", "null.yaml"], "schedules must have different names, got 'None' twice"),
    (["--schedules", "deep.yaml"], "deep.yaml, line 1: values are nested more than 100 deep"),
    (["--schedules", "digits.yaml"], "digits.yaml: Exceeds the limit"),
    (["--schedules", "good.yaml", "--baseline", "constant"], "baseline must be one of a, b, got 'constant'"),
    (["--folder", "file"], "--folder must be a folder or not exist yet; file: Not a directory"),
    (["--folder", "file/below"], "--folder must be a folder or not exist yet; file/below: Not a directory"),
    (["--folder", "mine"], "--folder must be empty or hold a comparison; mine holds something else"),
    (
        ["--claims", "--data", "article", "--folder", "mine"],
        "--folder must be empty or hold claims; mine holds something else",
    ),
    (["--claims", "--schedules", "good.yaml"], "--schedules must be left out with --claims"),
    (["--claims", "--baseline", "step"], "--baseline must be left out with --claims"),
]
FILES = {
    "twice.yaml": "a: Cosine\nb: Constant\na: Step\n",
    "list.yaml": "- Cosine\n",
    "empty.yaml": "",
    "broken.yaml": "a: [\n",
    "null.yaml": "null: Cosine\nNone: Step\n",
    "deep.yaml": "a: " + "[" * 5_000 + "]" * 5_000,
    "digits.yaml": "a: " + "9" * 5_000,
    "good.yaml": "a: Cosine\nb: Constant\n",
    "file": "",
    "mine/members.csv": "mine\n",
}
PROBE = """
import json, sys
from lit_cosine.cli.main import main
for flags in json.loads(sys.argv[1]):
    print(main(["compare", *flags]), sorted({"torch", "lightning", "numpy"} & {*sys.modules}))
    print("end", file=sys.stderr)
"""


def test_what_the_command_line_tells_is_refused_in_one_sentence_before_torch(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    given = json.dumps([flags for flags, _ in LIGHT])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=250,
    )
    assert done.stdout.splitlines() == ["2 []"] * len(LIGHT), done.stderr
    for (flags, message), error in zip(LIGHT, done.stderr.split("end\n"), strict=False):
        assert message in error, flags
        assert error.startswith("lit-cosine compare: error: ")
        assert error.count("\n") == 1
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {*FILES}
    assert (tmp_path / "mine" / "members.csv").read_text() == "mine\n"


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        raise RuntimeError("boom\nand more")


class Wide(nn.Linear):
    def __init__(self) -> None:
        super().__init__(7, 3)


class Binary(nn.Linear):
    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 2)


class Normed(nn.Sequential):
    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__(nn.Linear(in_features, 8), nn.BatchNorm1d(8), nn.Linear(8, classes))


class Breaking(nn.Linear):
    """A network that cannot be made at the twentieth time: after the checks, in a training."""

    made = 0

    def __init__(self, in_features: int, classes: int) -> None:
        super().__init__(in_features, classes)
        Breaking.made += 1
        if Breaking.made > 20:
            raise ValueError("broken in a training")


@pytest.mark.parametrize("engine", ["serial", "local"])
def test_an_error_in_a_training_is_not_shown_as_a_fault_of_the_command_line(engine: str, tmp_path: Path) -> None:
    Breaking.made = 0
    options = ["--data", "wine", "--network", f"{__name__}:Breaking", "--seeds", "40", "--lrs", "0.01"]
    file = tmp_path / "schedules.yaml"
    file.write_text("down: Cosine\n")
    with pytest.raises(ValueError, match="broken in a training"):
        main(["compare", *options, "--schedules", str(file), "--engine", engine, "--folder", str(tmp_path / "run")])


def three() -> int:
    return 3


HEAVY = [
    (["--network", "Net"], "--network must be importable as module:Name, got 'Net': Empty module name"),
    (["--network", "nowhere:Net"], "must be importable as module:Name, got 'nowhere:Net': No module named 'nowhere'"),
    (["--network", "math:Net"], "must be importable as module:Name, got 'math:Net': module 'math' has no attribute"),
    (["--network", f"{__name__}:Raising"], f"--network {__name__}:Raising raised RuntimeError: boom\n"),
    (["--network", "math:inf"], "--network must be a class or a function at the top level of a module, which other"),
    (["--network", f"{__name__}:three"], f"--network must make a torch.nn.Module, {__name__}:three made int"),
    (["--network", f"{__name__}:Wide"], "network must map features (64, 13) to what the loss takes"),
    (["--network", f"{__name__}:Binary"], "with an output for each of the 3 classes, got (64, 2)"),
    (
        ["--network", f"{__name__}:Normed"],
        "(as BatchNorm does), and stacked members would share them; --config trains any LightningModule",
    ),
    (["--batch-size", "143"], "batch_size must be at most the 142 training rows, got 143"),
    (["--engine", "serial", "--address", "a:1"], 'needs engine="ray"'),
    (["--folder", "/proc/nothing"], "folder must be one that can be written to; /proc/nothing/trainings:"),
]


@pytest.mark.parametrize(("flags", "message"), HEAVY, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_sentence_and_status_2_before_training(flags, message, tmp_path, capsys) -> None:
    assert main(["compare", "--data", "wine", "--seeds", "2", "--folder", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lit-cosine compare: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def diverging(folder: Path, *lrs: str) -> None:
    file = folder / "schedules.yaml"
    file.write_text("flat: Constant\nlow: {class_path: Cosine, init_args: {end: 0.5}}\n")
    options = ["--data", "wine", "--schedules", str(file), "--seeds", "2", "--max_epochs", "1", "--engine", "serial"]
    command = ["compare", *options, "--optimizer", "sgd", "--lrs", *lrs, "--folder", str(folder / "run")]
    assert main(command) == 0


def test_trainings_that_diverge_are_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging(tmp_path, "0.01", "1e30")
    assert "4 of 8 trainings diverged or failed; they are excluded from every mean." in capsys.readouterr().out
    members = list(csv.DictReader((tmp_path / "run" / "members.csv").read_text().splitlines()))
    assert [int(member["diverged"]) for member in members] == [0, 1] * 4
    assert json.loads((tmp_path / "run" / "results.json").read_text())["diverged"] == 4


@pytest.mark.slow
def test_where_nothing_is_left_there_is_a_table_a_figure_and_no_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging(tmp_path, "1e30")
    assert "4 of 4 trainings diverged" in capsys.readouterr().out
    assert (tmp_path / "run" / "figure.png").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """What a full disk does to a long file: the write that passes ``size`` bytes raises an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("engine", ["serial", pytest.param("local", marks=pytest.mark.slow)])
def test_a_report_that_cannot_be_written_costs_no_trainings(engine: str, tmp_path: Path, capsys) -> None:
    file, folder = tmp_path / "schedules.yaml", tmp_path / "run"
    file.write_text("flat: Constant\ndown: Cosine\n")
    network = "tests.helpers.nets:Dropping"  # dropout makes a block of each seed
    options = ["--data", "wine", "--network", network, "--schedules", str(file), "--seeds", "2", "--lrs", "0.01"]
    command = ["compare", *options, "--max_epochs", "1", "--engine", engine, "--folder", str(folder)]
    with files_of_at_most(5000):  # blocks are shorter, pictures longer
        assert main(command) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("lit-cosine compare: error: cannot write to ")
    assert error.endswith("File too large; finished trainings are kept, and the same command continues from there")
    assert main(command) == 0
    assert (folder / "figure.png").exists()


def test_schedules_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text("flat: Constant\nlow: {class_path: Cosine, init_args: {end: 0.5}}\n")
    options = ["--data", "wine", "--seeds", "1", "--lrs", "0.01", "--max_epochs", "1", "--engine", "serial"]
    assert main(["compare", "--schedules", str(file), "--folder", str(tmp_path / "run"), *options]) == 0
    assert "One seed: differences have no interval" in capsys.readouterr().out
    description = json.loads((tmp_path / "run" / "results.json").read_text())["description"]
    assert description["schedules"]["low"] == Cosine(end=0.5).to_dict()
