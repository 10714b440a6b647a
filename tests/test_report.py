import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

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


BAD = [
    (["--lrs", "0"], "lrs must be finite and > 0, got 0.0"),
    (["--seeds", "0"], "seeds must be at least 1, got 0"),
    (["--data", "mnist"], "invalid choice: 'mnist'"),
    (["--network", "nowhere:Net"], "--network must be module:Class, got 'nowhere:Net'"),
    (["--schedules", "nowhere.yaml"], "cannot read nowhere.yaml"),
    (["--baseline", "nothing"], "baseline must be one of constant"),
    (["--lrz", "1"], "unrecognized arguments: --lrz"),
    (["--devices", "99", "--seeds", "1"], "devices * num_nodes must be at most the 1 blocks"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_input_is_one_sentence_and_status_2(flags, message, tmp_path, capsys) -> None:
    assert main(["compare", "--folder", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("lit-cosine compare: error:")]) == 1
    assert not (tmp_path / "run" / "figure.png").exists()


def test_schedules_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schedules.yaml"
    file.write_text("flat: Constant\nlow: {class_path: Cosine, init_args: {end: 0.5}}\n")
    options = ["--data", "wine", "--seeds", "1", "--lrs", "0.01", "--max-epochs", "1", "--devices", "1"]
    assert main(["compare", "--schedules", str(file), "--folder", str(tmp_path / "run"), *options]) == 0
    assert "One seed: differences have no interval" in capsys.readouterr().out
    description = json.loads((tmp_path / "run" / "trainings" / "comparison.json").read_text())
    assert description["schedules"]["low"] == Cosine(end=0.5).to_dict()
