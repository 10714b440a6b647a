import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError

import pytest
import tensorboard
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lit_cosine import ScheduleAudit
from lit_cosine.cli._web_page import CHANGES, web_page
from lit_cosine.cli.main import main
from lit_cosine.dashboard import Dashboard
from tests.helpers.boards import _COMMAND, served
from tests.helpers.nets import Net, fit, with_cosine

ARTICLE = [
    0.00975528, 0.00904508, 0.00793893, 0.00654508, 0.00500000, 0.00345492, 0.00206107, 0.00095492, 0.00024472, 0.0,
]  # fmt: skip


@pytest.mark.slow
def test_tensorboard_answers_what_ran_what_it_did_and_how_runs_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--trainer.accelerator", "cpu"]
    assert main(train) == 0
    short = ["--trainer.max_epochs", "2", "--model.schedule", "Restarts", "--model.schedule.cycles", "2"]
    assert main([*train, *short, "--model.interval", "step", "--model.lr", "0.1", "--data.batch_size", "100"]) == 0
    written = EventAccumulator("runs/run_1", size_guidance={"scalars": 0}).Reload()
    for tag in {*written.Tags()["scalars"]} - {"epoch"}:  # Lightning's, with what is validated and what is trained
        steps = [event.step for event in written.Scalars(tag)]
        assert steps == sorted({*steps}), tag  # each once
    with served(tmp_path / "runs") as board:
        board.wait(lambda board: {"run_1", "run_2"} <= {*board.get("plugin/images/tags")})
        points = board.scalars("run_1", "lr-Adam")
        assert [step for _, step, _ in points] == list(range(131))
        assert [lr for _, _, lr in points][13::13] == pytest.approx(ARTICLE, rel=1e-6, abs=5e-9)
        used = {step: lr for _, step, lr in points}
        planned = board.scalars("run_1", "planned/lr-Adam")
        assert len(planned) == 21  # both ends of ten stairs, and after the end
        for _, step, lr in planned:
            assert lr == pytest.approx(used[step], rel=1e-6, abs=1e-12)
        assert [step for _, step, _ in board.scalars("run_1", "train/gradient_norm")] == list(range(0, 130, 10))

        category, other = board.get("plugin/custom_scalars/layout")["category"]
        assert (category["title"], other["title"]) == ("Schedule", "Other")
        assert [chart["title"] for chart in other["chart"]] == ["train/accuracy"]
        charts = {chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]}
        assert [*charts] == [
            "Learning rate", "Training loss", "Validation and test loss", "Validation and test metrics",
            "Gradient norm",
        ]  # fmt: skip
        shown = {
            title: {
                shown
                for tag in tags
                for shown in board.get("plugin/custom_scalars/scalars", run="run_2", tag=tag)["tag_to_events"]
            }
            for title, tags in charts.items()
        }
        assert shown["Learning rate"] == {"lr-Adam", "planned/lr-Adam"}
        assert shown["Training loss"] == {"train/loss", "train/loss_step"}
        assert shown["Validation and test loss"] == {"val/loss", "test/loss"}
        assert shown["Validation and test metrics"] == {"val/accuracy", "test/accuracy"}
        assert shown["Gradient norm"] == {"train/gradient_norm"}

        rows = board.rows("test/accuracy")
        by_run = {row["sessions"][0]["name"]: row for row in rows}
        assert {*by_run} == {row["name"] for row in rows} == {"run_1", "run_2"}
        assert by_run["run_1"]["hparams"] == {
            "schedule": "Cosine", "parameters": "", "start": 1.0, "end": 0.0, "lr": 0.01,
            "interval": "epoch", "warmup": "0step", "epochs": 10, "batch_size": 64, "seed": 42, "network_size": 1474,
            "data": "SyntheticDataModule",
        }  # fmt: skip
        assert by_run["run_2"]["hparams"]["schedule"] == "Restarts"
        assert "cycles=2" in by_run["run_2"]["hparams"]["parameters"]
        assert by_run["run_2"]["hparams"]["batch_size"] == 100
        accuracies = []
        for row in rows:
            name = row["sessions"][0]["name"]
            measured = {value["name"]["tag"]: value["value"] for value in row["metricValues"]}
            assert measured.keys() == {"val/loss", "val/accuracy", "test/loss", "test/accuracy", "train/seconds"}
            for tag, value in measured.items():
                assert value == pytest.approx(board.scalars(name, tag)[-1][2], rel=1e-6)
            assert measured["train/seconds"] > 0
            assert row["sessions"][0]["status"] == "STATUS_SUCCESS"
            accuracies.append(measured["test/accuracy"])
        assert accuracies == sorted(accuracies, reverse=True)

        for tag in ("training_curves", "schedule/planned"):
            assert board.get("plugin/images/images", run="run_1", tag=tag, sample="0")
        assert board.get("plugin/graphs/info")["run_1"]["run_graph"]
        (text,) = board.get("plugin/text/text", run="run_1", tag="run/text_summary")
        for said in (
            "lit-cosine train --trainer.accelerator cpu",
            "max_epochs: 10",
            "lr-Adam: 0.01 at step 0",
            "torch",
        ):
            assert said in text["text"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that it kills")
def test_a_killed_run_that_is_resumed_has_one_unbroken_curve(tmp_path):
    script = [sys.executable, "-m", "tests.helpers.killed_run", str(tmp_path)]
    done = subprocess.run(
        script, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=300
    )
    left = json.loads(done.stdout.splitlines()[-1])
    assert left == list(range(len(left)))
    assert 10 <= len(left) <= 11  # the checkpoint is that of step 8; no point waits longer than two updates take here

    read = EventAccumulator(str(tmp_path / "broken"), size_guidance={"scalars": 0}).Reload()  # in Python
    with served(tmp_path) as board:  # by the data server
        board.wait(lambda board: all(len(board.rows("val/loss")) == 2 for _ in range(2)))
        for tag in ("lr-Adam", "planned/lr-Adam", "train/loss_step", "train/gradient_norm", "val/loss"):
            undisturbed = [(step, value) for _, step, value in board.scalars("whole", tag)]
            points = board.scalars("broken", tag)
            assert [(step, value) for _, step, value in points] == undisturbed
            assert [(event.step, event.value) for event in read.Scalars(tag)] == undisturbed
            times = [when for when, _, _ in points]
            assert times == sorted(times)
        assert len(board.scalars("broken", "lr-Adam")) == 19
        assert {row["sessions"][0]["status"] for row in board.rows("val/loss")} == {"STATUS_SUCCESS"}


@pytest.mark.slow
def test_every_point_is_served_and_the_dashboard_is_sent_the_outline_of_a_long_curve(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    short, long, peak, gap = 2000, 20_000, 12_345, 7_007
    with SummaryWriter(str(tmp_path / "run_1")) as writer:
        for step in range(long):
            value = {peak: 9.0, gap: math.nan}.get(step, step % 2)
            writer.add_scalar("lr-long", value, step)
            if step < short:
                writer.add_scalar("lr-short", value, step)
    with served(tmp_path) as board:
        board.wait(lambda board: "run_1" in board.get("runs"))
        board.wait(lambda board: len(board.scalars("run_1", "lr-long")) == long)
        sent = board.get("plugin/custom_scalars/scalars", run="run_1", tag="^lr-")["tag_to_events"]
    assert [step for _, step, _ in sent["lr-short"]] == list(range(short))
    steps = [step for _, step, _ in sent["lr-long"]]
    assert len(steps) <= 2002
    assert steps == sorted({*steps})
    assert {0, gap, peak, long - 1} <= {*steps}
    for part in {*range(1000)} - {gap // 20, peak // 20}:
        assert {value for _, step, value in sent["lr-long"] if step // 20 == part} == {0.0, 1.0}


def occupied():
    """Return a socket that listens, on a port whose successor is free."""
    while True:
        taken, after = socket.socket(), socket.socket()
        with after:
            taken.bind(("127.0.0.1", 0))
            try:
                after.bind(("127.0.0.1", taken.getsockname()[1] + 1))
            except OSError:
                taken.close()
                continue
        taken.listen()
        return taken


def test_a_busy_port_is_named_and_the_next_one_taken_on_loopback_alone(tmp_path):
    with occupied() as taken:
        port = taken.getsockname()[1]
        with served(tmp_path, "--port", str(port)) as board:
            page = "?smoothing=0#custom_scalars&_smoothingWeight=0"
            assert board.said == [
                f"Port {port} is taken.",
                f"No run has written to {tmp_path} yet: the page fills as they do.",
                f"TensorBoard: http://127.0.0.1:{port + 1}/{page} (Ctrl-C stops it)",
            ]
            assert board.get("environment")["data_location"] == str(tmp_path)
            own = [address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
            for address in (address for address in own if not address.startswith("127.")):
                with socket.socket() as probe:
                    assert probe.connect_ex((address, port + 1)) != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "FOLDER must be a folder of runs, there is no folder nowhere"),
        ([".", "--port", "70000"], "port must be between 0 and 65535, got 70000"),
        ([".", "--port", "many"], "port: Expected an integer. Got value: many"),
        ([".", "--host", "203.0.113.1"], "host must be an address of this machine, got 203.0.113.1: Cannot assign"),
        ([".", "--host", "nowhere.invalid"], "host must be an address of this machine, got nowhere.invalid: "),
        ([".", "--bogus"], "unknown option --bogus"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["board", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lit-cosine board: error: {message}")


def test_it_says_when_others_can_read_the_runs(tmp_path):
    with served(tmp_path, "--host", "0.0.0.0") as board:
        assert board.said[1] == "Listening on 0.0.0.0: everybody who can reach this machine can read these runs."


def test_an_interruption_is_no_error(tmp_path):
    command = [sys.executable, "-c", _COMMAND, "board", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


HOSTILE = (
    "<img src=x onerror=alert(1)> ![](http://a.invalid/b.png) [c](javascript:alert(2)) | `d` <script>alert(3)</script>"
)


@pytest.mark.slow
def test_names_and_hyperparameters_are_shown_as_text_and_name_no_file(tmp_path):
    run = tmp_path / "runs" / "<img src=x onerror=alert(1)>"
    logger = TensorBoardLogger(run, name="", version="")
    model = Net(with_cosine(8, interval="step"))
    model.save_hyperparameters({"warmup": HOSTILE, HOSTILE: "\n# " + HOSTILE})
    fit(model, Dashboard(command=HOSTILE), ScheduleAudit("print"), logger=logger, max_epochs=1, log_every_n_steps=1)
    with served(tmp_path / "runs") as board:
        board.wait(lambda board: run.name in board.get("plugin/text/tags"))
        (page,) = board.get("plugin/text/text", run=run.name, tag="run/text_summary")
        assert not re.search(r"<(img|script|a|iframe)\b", page["text"])
        assert "alert(1)" in page["text"]  # it is there, as text
        assert "<h1>" not in page["text"]
        for outside in ("../../../etc/passwd", "/etc/passwd", "..%2f..%2fetc", str(tmp_path)):
            for plugin in ("scalars/scalars", "text/text", "images/images"):
                with suppress(HTTPError):
                    assert board.get(f"plugin/{plugin}", run=outside, tag="passwd") in ([], {}, b"", None)


@pytest.mark.slow
def test_two_hundred_runs_are_served(tmp_path):
    for number in range(200):
        with SummaryWriter(str(tmp_path / f"run_{number}")) as writer:
            for step in range(200):
                writer.add_scalar("lr-Adam", 0.1 / (step + 1), step)
                writer.add_scalar("train/loss_step", 1 / (step + 1), step)
    began = time.monotonic()
    with served(tmp_path) as board:
        seconds = {"address": time.monotonic() - began}
        board.get("plugin/custom_scalars/layout")
        seconds["layout"] = time.monotonic() - began
        board.wait(lambda board: len(board.get("runs")) == 200)
        seconds["all runs"] = time.monotonic() - began
        for number in (0, 199):
            asked = time.monotonic()
            board.wait(lambda board, run=f"run_{number}": len(board.scalars(run, "lr-Adam")) == 200)
            seconds[f"a curve of run_{number}"] = time.monotonic() - asked
    print({what: round(taken, 2) for what, taken in seconds.items()})
    assert seconds["all runs"] < 120


def test_tensorboard_has_every_text_that_is_changed_in_its_page():
    with zipfile.ZipFile(Path(tensorboard.__file__).with_name("webfiles.zip")) as own:
        script = own.read("index.js").decode()
    for pattern, replacement in CHANGES:
        assert re.search(pattern, script), pattern
        assert re.sub(pattern, replacement, script) != script, pattern


def test_a_browser_does_not_take_the_changed_page_for_tensorboards_own():
    with (
        zipfile.ZipFile(Path(tensorboard.__file__).with_name("webfiles.zip")) as own,
        zipfile.ZipFile(web_page()) as made,
    ):
        assert own.namelist() == made.namelist()
        own_number, number = (re.search(rb"_file_hash=(\w+)", page.read("index.html"))[1] for page in (own, made))
    assert number != own_number
