import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch import nn

from lit_cosine import Constant, Cosine, SimpleNN, TabularDataModule, compare
from lit_cosine.cli import main
from lit_cosine.comparison import Comparison
from lit_cosine.report import draw, table, write


@pytest.fixture(scope="module")
def found() -> Comparison:
    schedules = {"constant": Constant(), "cosine": Cosine(end=0.1)}
    data = TabularDataModule("iris", batch_size=40)
    return compare(lambda: SimpleNN(4, 8, 3), data, schedules, [0.1, 0.01], 3, 2, devices=1)


def test_the_files_hold_the_comparison(found: Comparison, tmp_path: Path) -> None:
    paths = write(found, tmp_path)
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
    assert len(rows) == 2 * (2 + 4)
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


def test_writing_twice_gives_the_same_files(found: Comparison, tmp_path: Path) -> None:
    one, two = write(found, tmp_path / "one"), write(found, tmp_path / "two")
    for name in ("table.csv", "members.csv", "curves.csv", "results.json", "figure.png"):
        assert one[name].read_bytes() == two[name].read_bytes()


def test_tensorboard_has_a_run_for_each_schedule_with_its_lr_beside_its_loss(found: Comparison, tmp_path: Path) -> None:
    folder = write(found, tmp_path)["tensorboard"]
    best = found.best_lr("cosine")
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
    found: Comparison, tmp_path: Path
) -> None:
    rows = {}
    for data in ("one", "two"):  # served together: rows of one name would be one
        folder = write(found, tmp_path / data, columns={"data": data, "network_size": 67})["tensorboard"]
        for run in folder.iterdir():
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


def test_the_heat_map_is_of_floors_where_there_are_floors(found: Comparison) -> None:
    floors = {"a": Cosine(), "b": Cosine(end=0.3)}
    data = TabularDataModule("iris", batch_size=40)
    swept = compare(lambda: SimpleNN(4, 8, 3), data, floors, [0.1], 2, 1, devices=1)
    assert [text.get_text() for text in draw(found, swept).axes[3].get_yticklabels()] == ["0", "0.3"]


def test_the_table_shows_what_diverged_and_that_one_seed_has_no_interval(found: Comparison) -> None:
    def shown(comparison: Comparison) -> str:
        console = Console(width=160, file=io.StringIO())
        with console.capture() as capture:
            console.print(table(comparison))
        return capture.get()

    assert "95 % interval" in shown(found)
    members = found.members.copy()
    members["val_loss"][0] = np.nan
    parts = {**vars(found), "members": members}
    assert "1 of 3" in shown(Comparison(**parts))
    parts = {**vars(found), "members": found.members[:1], "seeds": (0,)}
    assert "no interval: one seed" in shown(Comparison(**parts))


@pytest.mark.slow
def test_the_command_writes_its_folder_and_continues_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["compare", "--data", "wine", "--seeds", "2", "--lrs", "0.01", "--max-epochs", "1", "--devices", "1"]
    assert main([*options, "--folder", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert out.index("The schedules are drawn") < out.index("test accuracy")
    assert (tmp_path / "run" / "schedules.png").stat().st_size > 10_000
    assert "warmup-stable-decay" in out
    figure = (tmp_path / "run" / "figure.png").read_bytes()
    assert main([*options, "--folder", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "figure.png").read_bytes() == figure
    capsys.readouterr()
    assert main([*options, "--seeds", "3", "--folder", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "lit-cosine compare: error: folder must hold this comparison or nothing" in error
    assert "seeds" in error


# what the command line alone tells is refused before torch is imported
LIGHT = [
    (["--lrs"], "argument --lrs: expected at least one argument"),
    (["--lrs", "0"], "lrs must be finite and > 0, got 0.0"),
    (["--lrs", "0.1", "nan"], "lrs must be finite and > 0, got nan"),
    (["--lrs", "1e999"], "lrs must be finite and > 0, got inf"),
    (["--lrs", "0.1", "0.10"], "lrs must differ from each other, got [0.1, 0.1]"),
    (["--seeds", "0"], "seeds must be at least 1, got 0"),
    (["--seeds", str(10**12)], "seeds x schedules x lrs x max_epochs must fit into memory; 77000000000000 trainings"),
    (["--seeds", str(10**30)], "seeds must be at most"),
    (["--max-epochs", "0"], "max_epochs must be an integer >= 1, got 0"),
    (["--max-epochs", str(10**12)], "must fit into memory"),
    (["--batch-size", "0"], "batch_size must be an integer >= 1, got 0"),
    (["--devices", "0"], "devices must be an integer >= 1, got 0"),
    (["--num-nodes", "-1"], "num_nodes must be an integer >= 1, got -1"),
    (["--weight-decay", "nan"], "weight_decay must be finite and >= 0, got nan"),
    (["--momentum", "1"], "momentum must be in [0, 1), got 1.0"),
    (["--optimizer", "lion"], "invalid choice: 'lion'"),
    (["--data", "mnist"], "invalid choice: 'mnist'"),
    (["--network", "Net"], "--network must be module.Class, got 'Net'"),
    (["--baseline", "nothing"], "baseline must be one of constant, step, exponential"),
    (["--lrz", "1"], "unrecognized arguments: --lrz"),
    (["--schedules", "nowhere.yaml"], "cannot read nowhere.yaml: No such file or directory"),
    (["--schedules", "twice.yaml"], "schedules must have different names, twice.yaml has 'a' twice"),
    (["--schedules", "list.yaml"], "list.yaml must hold schedules by name, got ['Cosine']"),
    (["--schedules", "empty.yaml"], "empty.yaml must hold schedules by name, got None"),
    (["--schedules", "broken.yaml"], "broken.yaml is not YAML"),
    (["--schedules", "good.yaml", "--baseline", "constant"], "baseline must be one of a, b, got 'constant'"),
    (["--folder", "file"], "--folder must be a folder or not exist yet; file: Not a directory"),
    (["--folder", "file/below"], "--folder must be a folder or not exist yet; file/below: Not a directory"),
    (["--folder", "mine"], "--folder must be empty or hold a comparison; mine holds something else"),
    (["--claims", "--folder", "mine"], "--folder must be empty or hold claims; mine holds something else"),
    (["--claims", "--one-by-one"], "--one-by-one must be left out with --claims"),
    (["--claims", "--schedules", "good.yaml"], "--schedules must be left out with --claims"),
    (["--claims", "--baseline", "step"], "--baseline must be left out with --claims"),
]
FILES = {
    "twice.yaml": "a: Cosine\nb: Constant\na: Step\n",
    "list.yaml": "- Cosine\n",
    "empty.yaml": "",
    "broken.yaml": "a: [\n",
    "good.yaml": "a: Cosine\nb: Constant\n",
    "file": "",
    "mine/members.csv": "mine\n",
}
PROBE = """
import json, sys
from lit_cosine.cli import main
for flags in json.loads(sys.argv[1]):
    print(main(["compare", *flags]), sorted({"torch", "lightning", "numpy"} & {*sys.modules}))
    print("end", file=sys.stderr)
"""


def test_what_the_command_line_tells_is_refused_in_one_sentence_before_torch(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    given = json.dumps([flags for flags, _ in LIGHT])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, given], capture_output=True, text=True, cwd=tmp_path, env=environment
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


def three() -> int:
    return 3


HEAVY = [
    (["--network", "nowhere:Net"], "--network must be module.Class, got 'nowhere:Net': No module named 'nowhere'"),
    (["--network", "math:Net"], "--network must be module.Class, got 'math:Net': module 'math' has no attribute"),
    (["--network", f"{__name__}:Raising"], f"--network {__name__}:Raising raised RuntimeError: boom\n"),
    (["--network", "math:inf"], "--network math:inf raised TypeError: inf is not a callable object"),
    (["--network", f"{__name__}:three"], f"--network must make a torch.nn.Module, {__name__}:three made int"),
    (["--network", f"{__name__}:Wide"], "network must map features (64, 13) to what the loss takes"),
    (["--network", f"{__name__}:Wide", "--one-by-one"], "network must map features (64, 13) to what the loss takes"),
    (["--network", f"{__name__}:Binary"], "with an output for each of the 3 classes, got (64, 2)"),
    (
        ["--network", f"{__name__}:Normed"],
        "(as BatchNorm does), and those of stacked members would run together; --one-by",
    ),
    (["--batch-size", "143"], "batch_size must be at most the 142 training rows, got 143"),
    (["--devices", "99", "--seeds", "1"], "devices * num_nodes must be at most the 1 blocks"),
    (["--num-nodes", "2"], "num_nodes must be 1 where neither torchrun nor SLURM has started the processes and the"),
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


def test_trainings_that_diverge_are_counted_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text("flat: Constant\nlow: {class_path: Cosine, init_args: {end: 0.5}}\n")
    options = ["--data", "wine", "--schedules", str(file), "--seeds", "2", "--max-epochs", "1", "--devices", "1"]
    folder = tmp_path / "run"
    assert main(["compare", *options, "--optimizer", "sgd", "--lrs", "0.01", "1e30", "--folder", str(folder)]) == 0
    assert "4 of 8 trainings diverged; they are in no mean." in capsys.readouterr().out
    members = list(csv.DictReader((folder / "members.csv").read_text().splitlines()))
    assert [int(member["diverged"]) for member in members] == [0, 1] * 4
    assert json.loads((folder / "results.json").read_text())["diverged"] == 4
    # and where nothing is left there is a table, a figure and no interval
    assert main(["compare", *options, "--optimizer", "sgd", "--lrs", "1e30", "--folder", str(tmp_path / "all")]) == 0
    assert "4 of 4 trainings diverged" in capsys.readouterr().out
    assert (tmp_path / "all" / "figure.png").exists()


@pytest.mark.xdist_group("processes")
def test_side_comparisons_of_fewer_blocks_than_processes_leave_some_idle(tmp_path: Path) -> None:
    options = ["--data", "wine", "--seeds", "6", "--lrs", "0.01", "0.1", "--max-epochs", "1", "--devices", "3"]
    assert main(["compare", *options, "--folder", str(tmp_path)]) == 0
    # 22 arms make 3 blocks of 2 seeds, the 12 of the floors 2 of 5
    assert [len(list((tmp_path / name / "blocks").iterdir())) for name in ("trainings", "floors")] == [3, 2]


def test_schedules_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text("flat: Constant\nlow: {class_path: Cosine, init_args: {end: 0.5}}\n")
    options = ["--data", "wine", "--seeds", "1", "--lrs", "0.01", "--max-epochs", "1", "--devices", "1"]
    assert main(["compare", "--schedules", str(file), "--folder", str(tmp_path / "run"), *options]) == 0
    assert "One seed: differences have no interval" in capsys.readouterr().out
    description = json.loads((tmp_path / "run" / "trainings" / "comparison.json").read_text())
    assert description["schedules"]["low"] == Cosine(end=0.5).to_dict()
