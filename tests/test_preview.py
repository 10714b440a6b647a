import csv
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest
import torch

from lit_cosine import Cosine, Restarts, ScheduleLR, Sequential, Step, schedules
from lit_cosine.cli import main
from lit_cosine.preview import Curve
from lit_cosine.spelling import arguments, build_schedule, names


def refused(capsys, *argv):
    """Run the command, which must refuse; return its one sentence."""
    assert main(["preview", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lit-cosine preview: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("lit-cosine preview: error: ").strip()


def table(capsys, *argv):
    """Run the command; return {step: [LRs]} and {step: what} of the table it prints."""
    assert main(["preview", *argv, "--ascii", "--width", "40", "--height", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.split()[:2] == ["step", "progress"])
    several = len(lines[begin].split()) - 2
    lrs, what = {}, {}
    for line in lines[begin + 1 :]:
        step, _, *words = line.split()
        lrs[int(step.replace(",", ""))] = [float(word) for word in words[-several:]]
        what[int(step.replace(",", ""))] = " ".join(words[:-several])
    return lrs, what


@pytest.mark.parametrize("schedule", [Cosine(end=0.1), Step(milestones=(0.5,)), Restarts(Cosine(), 3, 2.0)])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_a_curve_is_what_schedule_lr_plays(schedule, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = ScheduleLR(optimizer, schedule, total_steps=40, warmup_steps=warmup)
    curve = Curve(schedule, 0.3, 40, warmup)
    for step in range(45):
        assert curve(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-15)
        optimizer.step()
        scheduler.step()


def test_the_issues_example(capsys):
    lrs, what = table(capsys, *["Cosine", "--end", "0.1", "--lr", "0.01", "--steps", "1000", "--warmup", "50step"])
    assert what == {
        0: "start",
        50: "end of warmup",
        250: "a quarter",
        500: "half",
        750: "three quarters",
        999: "last update",
        1000: "after the end",
    }
    assert lrs[0] == [pytest.approx(0.01 / 51, rel=1e-5)]
    assert lrs[50] == [0.01]
    assert lrs[1000] == [0.001]
    # 200 of the 950 steps after the warmup: 0.001 + 0.009 * (1 + cos(200/950 pi)) / 2
    assert lrs[250] == [pytest.approx(0.00905113, rel=1e-6)]


def test_milestones_are_where_the_lr_really_changes(capsys):
    lrs, what = table(capsys, *["Step", "--milestones", "0.3", "0.805", "--steps", "100", "--warmup", "10%"])
    # of the 90 steps after the warmup: 10 + 27, and 10 + 72.45 rounded up
    assert [step for step, name in what.items() if name == "milestone"] == [37, 83]
    curve = Curve(Step(milestones=(0.3, 0.805)), 1.0, 100, 10)
    assert [step for step in range(11, 100) if curve(step) != curve(step - 1)] == [37, 83]
    assert lrs[37] == [0.1]
    assert lrs[83] == [pytest.approx(0.01)]


def test_several_have_a_column_each_and_nested_flags_reach_inside(capsys):
    flags = "--schedule Linear --schedule.end 0.5 --cycles 2"
    lrs, _ = table(capsys, "Restarts", *flags.split(), "Cosine", "one_cycle", "--warmup", "0.25")
    assert lrs[500] == [1.0, pytest.approx(0.5), pytest.approx(schedules.one_cycle(0.25)(0.5), rel=1e-5)]


def test_a_warmup_with_a_unit_is_the_runs_and_a_fraction_the_presets(capsys):
    lrs, what = table(capsys, *["one_cycle", "--warmup", "0.2", "--warmup", "2ep", "--epochs", "10", "--steps", "100"])
    assert what[20] == "end of warmup"
    assert lrs[36] == [1.0]


def test_from_yaml_with_flags_over_it(capsys, tmp_path):
    path = tmp_path / "schedules.yaml"
    path.write_text(
        "lr: 1e-2\nsteps: 200\nschedules:\n"
        "  plain: Cosine\n"
        "  floor: {class_path: lit_cosine.Cosine, init_args: {end: 1e-1}, warmup: 20step, lr: 0.5}\n"
        "  parts:\n    class_path: Sequential\n    init_args:\n"
        "      schedules:\n      - Linear\n      - {class_path: Constant, init_args: {value: 0.25}}\n"
        "      milestones: [0.5]\n"
    )
    lrs, what = table(capsys, "--config", str(path), "--lr", "0.02")
    assert what[20] == "end of warmup"
    assert what[100] == "milestone"
    assert lrs[20] == [pytest.approx(Curve(Cosine(), 0.02, 200)(20), rel=1e-5), 0.5, pytest.approx(0.016)]
    assert lrs[200] == [0.0, pytest.approx(0.05), 0.005]


def test_the_yaml_of_a_training_run_is_read_as_it_stands(capsys, tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text("class_path: lit_cosine.schedules.Cosine\ninit_args:\n  start: 1.0\n  end: 0.5\n  k: 1.0\n")
    lrs, _ = table(capsys, "--config", str(path))
    assert lrs[1000] == [0.5]


def test_csv_has_every_step(capsys, tmp_path):
    path = tmp_path / "lr.csv"
    assert main(["preview", *["Cosine", "Step", "--lr", "0.1", "--steps", "50", "--output"], str(path)]) == 0
    header, *rows = list(csv.reader(path.read_text().splitlines()))
    assert header == ["step", "progress", "Cosine()", "Step()"]
    assert [int(row[0]) for row in rows] == list(range(51))
    assert [float(row[2]) for row in rows] == [Curve(Cosine(), 0.1, 50)(step) for step in range(51)]


def test_pictures(capsys, tmp_path):
    png, svg = tmp_path / "lr.png", tmp_path / "lr.svg"
    assert main(["preview", "Cosine", "Step", "--output", str(png), "--output", str(svg)]) == 0
    assert f"wrote {png}" in capsys.readouterr().out
    image = matplotlib.image.imread(png)
    colours = {tuple(pixel) for pixel in (image[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # Okabe and Ito's: both curves are there
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("Cosin", "unknown schedule 'Cosin'; did you mean Cosine?"),
        ("cosine", "unknown schedule 'cosine'; did you mean Cosine?"),
        ("Zzzzzzz", "known are Constant, Cosine"),
        ("mypackage.Cosine", "unknown schedule 'mypackage.Cosine'"),
        ("", "name a schedule or give --config"),
        ("Cosine --gamma 0.1", "Cosine has no argument --gamma"),
        ("Cosine --ned 0.1", "did you mean --end?"),
        ("--setps 3", "unknown flag --setps; did you mean --steps?"),
        ("Cosine --end", "--end needs a value"),
        ("Cosine --end=", "--end needs a value"),
        ("Cosine --steps --lr 0.1", "--steps needs a value"),
        ("Cosine --ascii=1", "argument --ascii: ignored explicit argument '1'"),
        ("Sequential --schedules Linear Cosine", "--schedules must be a list such as [Linear,Cosine], got 'Linear'"),
        ("Cosine --end 0.1 --end 0.2", "--end is given twice"),
        ("Cosine --lr 0.1 --lr 0.2", "--lr is given twice"),
        ("Cosine --end -0.1", "Cosine.end must be finite and >= 0, got -0.1"),
        ("Cosine --end [", "cannot read the value '['"),
        ("Cosine --end big", "Cosine.end must be a number, got 'big'"),
        ("Restarts --schedule.end 0.1", "--schedule.end needs --schedule NAME before it"),
        ("Sequential", "Sequential needs schedules and milestones"),
        ("Cosine Cosine", "Cosine() is given twice"),
        ("Cosine --steps 0", "steps must be an integer >= 1, got 0"),
        ("Cosine --steps -5", "steps must be an integer >= 1, got -5"),
        ("Cosine --steps 1.5", "invalid int value: '1.5'"),
        ("Cosine --lr 0", "lr must be finite and > 0, got 0"),
        ("Cosine --lr nan", "lr must be finite and > 0, got nan"),
        ("Cosine --warmup 50", "warmup must name its unit, got '50': write \"50step\""),
        ("Cosine --warmup -1step", "must be finite and >= 0, got -1.0 from '-1step'"),
        ("Cosine --warmup 2ep", 'warmup="2ep" needs --epochs'),
        ("Cosine --warmup 2ep --epochs 0", "epochs must be an integer >= 1, got 0"),
        ("Cosine --warmup 30s", "has no place in a run counted in steps"),
        ("Cosine --warmup 1000step", "warmup must be shorter than the run: got 1,000 of 1,000 steps"),
        ("Cosine --width 5", "width must be >= 20, got 5"),
        ("Cosine --output lr.jpg", "--output must end in .png, .svg, .csv"),
        ("Cosine --output nowhere/lr.png", "the folder nowhere of --output does not exist"),
        ("--config missing.yaml", "cannot read missing.yaml: No such file or directory"),
    ],
)
def test_what_is_refused(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *argv.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes: 10\nclass_path: Cosine", "unknown key 'stpes'; did you mean steps?"),
        ("class_path: Cosine\ninit_agrs: {}", "unknown key 'init_agrs'; did you mean init_args?"),
        (
            "schedules: {a: {class_path: Cosine, init_args: {ned: 1}}}",
            "schedules.a.init_args.ned: Cosine has no argument",
        ),
        ("schedules: {a: {class_path: Cosin}}", "schedules.a: unknown schedule 'Cosin'; did you mean Cosine?"),
        ("schedules: {a: {class_pth: Cosine}}", "schedules.a: unknown key 'class_pth'; did you mean class_path?"),
        ("schedules: {a: {init_args: {}}}", "schedules.a: class_path must name a schedule, got None"),
        ("schedules: {a: {class_path: Cosine, init_args: 3}}", "schedules.a.init_args must hold the arguments"),
        ("schedules: {a: 3}", "schedules.a: a schedule is a name or has the keys"),
        ("schedules: []", "schedules must hold at least one schedule"),
        ("steps: many\nschedules: [Cosine]", "steps must be an integer, got 'many'"),
        ("warmup: 50\nschedules: [Cosine]", "warmup must name its unit, got 50"),
        ("schedules: [", "is not YAML, see line 1"),
        ("- Cosine", "must hold a mapping with the key schedules or class_path"),
        (
            "class_path: Sequential\ninit_args: {schedules: [Cosine, {class_path: Stpe}], milestones: [0.5]}",
            "init_args.schedules[1]: unknown schedule 'Stpe'; did you mean Step?",
        ),
        ("class_path: Sequential\ninit_args: {schedules: Cosine, milestones: []}", "must be a list of schedules"),
    ],
)
def test_what_is_refused_in_a_file(capsys, tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert message in refused(capsys, "--config", str(path))


def test_nothing_is_overwritten_without_force(capsys, tmp_path):
    path, other = tmp_path / "lr.csv", tmp_path / "new.csv"
    path.write_text("mine")
    message = refused(capsys, "Cosine", "--output", str(other), "--output", str(path))
    assert message == f"{path} is already there: give another name, or --force to replace it"
    assert path.read_text() == "mine"
    assert not other.exists()
    assert main(["preview", "Cosine", "--output", str(path), "--force"]) == 0
    assert path.read_text().startswith("step,")


def test_every_schedule_can_be_spelled():
    assert {type(build_schedule(name)) for name in names() if name[0].isupper() and name != "Sequential"} | {
        Sequential
    } == {getattr(schedules, name) for name in names() if name[0].isupper()}
    assert arguments("Restarts") == ("schedule", "cycles", "t_mult", "decay")
    for schedule in (schedules.warmup_cosine(), Restarts(Step(milestones=(0.5,)), 2)):
        assert build_schedule(schedule.to_dict()) == schedule


PROBE = """
import sys
from lit_cosine.cli import main
main(["preview", *sys.argv[1:]])
print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))
"""


def probe(*argv, code=PROBE, **env):
    run = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env={**os.environ, **env})
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_it_loads_neither_torch_nor_lightning():
    assert probe("Cosine", "--steps", "10").splitlines()[-1] == "[]"
    assert probe("Cosine", code=f"import torch; {PROBE}").splitlines()[-1] != "[]"  # the probe can fail


def test_a_terminal_without_braille_gets_ascii():
    drawn = probe("Cosine", PYTHONIOENCODING="ascii")
    assert drawn.isascii()
    assert "*" in drawn
