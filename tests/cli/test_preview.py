import csv
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest
import torch
import yaml

from lit_cosine import Cosine, LearningRateScheduler, Restarts, ScheduleLR, Sequential, Step, schedules
from lit_cosine.cli.main import main
from lit_cosine.schedules import PlannedFactor, arguments, build_schedule, names
from tests.helpers.nets import Net, trainer
from tests.helpers.witnesses import Used


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


def test_a_name_in_lower_case_is_drawn(capsys):
    assert table(capsys, "cosine", "--end", "0.1") == table(capsys, "Cosine", "--end", "0.1")


@pytest.mark.parametrize("schedule", [Cosine(end=0.1), Step(milestones=(0.5,)), Restarts(Cosine(), 3, 2.0)])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_a_curve_is_what_schedule_lr_sets(schedule, warmup, tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = ScheduleLR(optimizer, schedule, total_steps=40, warmup_steps=warmup)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(schedule.to_dict()))
    run = ["--lr", "0.3", "--steps", "40", "--warmup", f"{warmup}step", "--output", str(tmp_path / "lr.csv")]
    assert main(["preview", "--config", str(tmp_path / "s.yaml"), *run]) == 0
    _, *rows = csv.reader((tmp_path / "lr.csv").read_text().splitlines())
    assert len(rows) == 41
    for row in rows:
        assert float(row[2]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-15)
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


def test_a_cooldown_ends_the_run(capsys):
    argv = "Constant --steps 100 --warmup 10% --cooldown 20% --cooldown_schedule Linear --cooldown_schedule.end 0.5"
    lrs, what = table(capsys, *argv.split())
    assert [step for step, name in what.items() if name == "start of cooldown"] == [80]
    assert (lrs[80], lrs[99], lrs[100]) == ([1.0], [0.525], [0.5])  # 1 - 0.5 * 19/20 in the last update


def test_a_cooldown_is_one_minus_sqrt_after_any_schedule(capsys):
    argv = "Step --milestones 0.5 --gamma 0.5 --steps 36 --cooldown 16step"
    lrs, what = table(capsys, *argv.split())
    assert [step for step, name in what.items() if name == "milestone"] == [10]  # half of the 20 steps before it
    assert lrs[20] == [0.5]
    assert lrs[18 + 9] == [pytest.approx(0.5 * (1 - (7 / 16) ** 0.5), rel=1e-5)]
    assert lrs[36] == [0.0]


def test_schedules_of_a_file_may_have_their_own_cooldown(capsys, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "{steps: 40, epochs: 10, cooldown: 1ep, schedules: {a: Constant, b: {class_path: Constant, cooldown: 50%, "
        "cooldown_schedule: {class_path: Linear, init_args: {end: 0.5}}}}}"
    )
    lrs, _ = table(capsys, "--config", str(tmp_path / "s.yaml"))
    assert lrs[36] == [1.0, 0.6]  # 16 of the 20 cooldown steps
    assert lrs[40] == [0.0, 0.5]


def test_milestones_are_where_the_lr_really_changes(capsys):
    lrs, what = table(capsys, *["Step", "--milestones", "0.3", "0.805", "--steps", "100", "--warmup", "10%"])
    # of the 90 steps after the warmup: 10 + 27, and 10 + 72.45 rounded up
    assert [step for step, name in what.items() if name == "milestone"] == [37, 83]
    factor = PlannedFactor.of_run(Step(milestones=(0.3, 0.805)), 100, 10)
    assert [step for step in range(11, 100) if factor(step) != factor(step - 1)] == [37, 83]
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
    assert lrs[20] == [pytest.approx(0.01951057, rel=1e-5), 0.5, pytest.approx(0.016)]
    assert lrs[200] == [0.0, pytest.approx(0.05), 0.005]


def test_the_yaml_of_a_training_run_is_read_as_it_stands(capsys, tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text("class_path: lit_cosine.schedules.Cosine\ninit_args:\n  start: 1.0\n  end: 0.5\n  k: 1.0\n")
    lrs, _ = table(capsys, "--config", str(path))
    assert lrs[1000] == [0.5]


def test_each_group_has_the_curve_that_the_callback_plays(capsys, tmp_path):
    """The callback's arguments as they stand in its YAML, against the LRs that it plans for such groups."""
    arguments = {
        "schedule": {"class_path": "lit_cosine.Cosine", "init_args": {"end": 0.1}},
        "warmup": "10%",
        "groups": {
            "head": {"schedule": "Constant", "cooldown": "25%"},
            "neck": {"class_path": "Linear", "init_args": {"end": 0.5}},
            "backbone": {"warmup": "8step"},
        },
    }
    path, out = tmp_path / "groups.yaml", tmp_path / "lr.csv"
    path.write_text(yaml.safe_dump({"steps": 40, **arguments}, sort_keys=False))
    assert main(["preview", "--config", str(path), "--output", str(out), "--output", str(tmp_path / "lr.png")]) == 0
    labels = ["Cosine", "head", "neck", "backbone"]
    assert [line.split() for line in capsys.readouterr().out.splitlines() if line[:3].strip() in {*"ABCD"}] == [
        [letter, label] for letter, label in zip("ABCD", labels, strict=True)
    ]
    groups = [{"name": name, "params": [torch.nn.Parameter(torch.zeros(1))]} for name in ("rest", *labels[1:])]
    used = Used()
    scheduler = LearningRateScheduler(build_schedule(arguments.pop("schedule")), **arguments)
    trainer(scheduler, used, max_steps=40).fit(Net(lambda optimizer, trainer: torch.optim.SGD(groups, lr=1.0)))
    header, *rows = csv.reader(out.read_text().splitlines())
    assert header == ["step", "progress", *labels]
    assert [[float(cell) for cell in row[2:]] for row in rows[:-1]] == used.rows[0]


def test_a_group_may_have_a_peak_of_its_own_and_takes_the_rest_from_its_schedule(capsys, tmp_path):
    (tmp_path / "s.yaml").write_text(
        "{steps: 40, lr: 0.1, schedules: {a: {schedule: Linear, lr: 0.5, groups: {head: {lr: 2.0}, b: Constant}}, "
        "c: Step}}"
    )
    lrs, _ = table(capsys, "--config", str(tmp_path / "s.yaml"))
    assert lrs[20] == [0.25, 1.0, 0.5, 0.01]


def test_csv_has_every_step(capsys, tmp_path):
    path = tmp_path / "lr.csv"
    assert main(["preview", *["Cosine", "Step", "--lr", "0.1", "--steps", "50", "--output"], str(path)]) == 0
    header, *rows = list(csv.reader(path.read_text().splitlines()))
    assert header == ["step", "progress", "Cosine()", "Step()"]
    assert [int(row[0]) for row in rows] == list(range(51))
    assert [float(row[2]) for row in rows] == [0.1 * Cosine()(step / 50) for step in range(51)]


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
        ("cosin", "unknown schedule 'cosin'; did you mean Cosine?"),
        ("Zzzzzzz", "known are Constant, Cosine"),
        ("mypackage.Cosine", "unknown schedule 'mypackage.Cosine'"),
        ("", "name a schedule or give --config"),
        ("Cosine --gamma 0.1", "Cosine has no argument --gamma"),
        ("Cosine --ned 0.1", "did you mean --end?"),
        ("--setps 3", "unknown option --setps; did you mean --steps?"),
        ("Cosine --end", "--end needs a value"),
        ("Cosine --end=", "--end needs a value"),
        ("Cosine --steps --lr 0.1", "--steps needs a value"),
        ("Cosine --ascii=1", "argument --ascii: ignored explicit argument '1'"),
        ("Sequential --schedules Linear Cosine", "--schedules must be a list such as [Linear,Cosine], got 'Linear'"),
        ("Cosine --end 0.1 --end 0.2", "--end is given twice"),
        ("Cosine --lr 0.1 --lr 0.2", "--lr is given twice"),
        ("Cosine --end -0.1", "Cosine.end must be finite and >= 0, got -0.1"),
        ("Cosine --end [", "--end is not YAML, see line 1: expected the node content"),
        (f"Cosine --end {'[' * 3000}", "--end, line 1: values are nested more than 100 deep"),
        ("Cosine --end 2024-13-01", "--end: month must be in 1..12"),
        ("Cosine --end big", "Cosine.end must be a number, got 'big'"),
        ("Restarts --schedule.end 0.1", "--schedule.end needs --schedule NAME before it"),
        ("Sequential", "Sequential needs schedules and milestones"),
        ("Cosine Cosine", "Cosine() is given twice"),
        ("Cosine --steps 0", "steps must be an integer >= 1, got 0"),
        ("Cosine --steps -5", "steps must be an integer >= 1, got -5"),
        ("Cosine --steps 1.5", "steps: Expected an integer. Got value: 1.5"),
        ("Cosine --lr 0", "lr must be finite and > 0, got 0"),
        ("Cosine --lr 1e308 --start 5", "lr must keep every LR finite, got 1e+308"),
        ("Cosine --lr nan", "lr: Expected a number. Got value: nan"),
        ("Cosine --warmup 50", "warmup must name its unit, got '50': write \"50step\""),
        ("Cosine --warmup -1step", "must be finite and >= 0, got -1.0 from '-1step'"),
        ("Cosine --warmup 2ep", 'warmup="2ep" needs --epochs'),
        ("Cosine --warmup 2ep --epochs 0", "epochs must be an integer >= 1, got 0"),
        ("Cosine --warmup 30s", "cannot be used in a run that is limited by steps or epochs"),
        ("Cosine --warmup 1000step", "warmup_steps 1,000 must be shorter than the run, got total_steps 1,000"),
        ("Cosine --cooldown 0step", "cooldown must be at least one of 1,000 steps, got '0step'"),
        ("Cosine --cooldown 100", "cooldown must name its unit, got '100'"),
        ("Cosine --cooldown 30s", 'cooldown="30s" cannot be used in a run that is limited by steps'),
        ("Cosine --cooldown 2ep", 'cooldown="2ep" needs --epochs'),
        ("Cosine --cooldown 100%", "warmup_steps 0 and cooldown_steps 1,000 must be shorter than the run"),
        ("Cosine --warmup 50% --cooldown 50%", "warmup_steps 500 and cooldown_steps 500 must be shorter than the run"),
        ("Cosine --cooldown_schedule Linear", "cooldown_schedule needs --cooldown, the length of the cooldown"),
        ("Cosine --cooldown 5% --cooldown_schedule Liner", "unknown schedule 'Liner'; did you mean Linear?"),
        ("Cosine --cooldown 5% --cooldown_schedule.end 1", "--cooldown_schedule.end needs --cooldown_schedule NAME be"),
        ("Cosine --cooldown_schedule", "--cooldown_schedule needs a value"),
        ("Cosine --width 5", "width must be an integer from 20 to 1000, got 5"),
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
        ("schedules: {a: {class_path: Cosine, init_args: 3}}", "schedules.a: init_args must hold the arguments"),
        ("schedules: {a: 3}", "schedules.a: a schedule is a name or has the keys"),
        ("schedules: []", "schedules must hold at least one schedule"),
        ("schedule: Cosine\nclass_path: Cosine", "give the schedule as schedule or as class_path, not as both"),
        ("groups: {head: Constant}", "class_path must name a schedule, got None"),
        ("schedule: Cosine\ngroups: [head]", "groups must hold curves by the names of groups, got ['head']"),
        ("schedule: Cosine\ngroups: {head: Constnt}", ".groups.head: unknown schedule 'Constnt'; did you mean Const"),
        ("schedule: Cosine\ngroups: {head: {warmpu: 5%}}", ".groups.head: unknown key 'warmpu'; did you mean warmup?"),
        ("schedule: Cosine\ngroups: {head: {cooldown: 0%}}", "cooldown must be at least one of 1,000 steps, got '0%'"),
        ("steps: many\nschedules: [Cosine]", "steps must be an integer >= 1, got 'many'"),
        ("warmup: 50\nschedules: [Cosine]", "warmup must name its unit, got 50"),
        ("schedules: [", "is not YAML, see line 1"),
        ("- Cosine", "must hold a mapping with the key schedules or class_path"),
        (
            "class_path: Sequential\ninit_args: {schedules: [Cosine, {class_path: Stpe}], milestones: [0.5]}",
            "init_args.schedules[1]: unknown schedule 'Stpe'; did you mean Step?",
        ),
        (
            "class_path: Sequential\ninit_args: {schedules: Cosine, milestones: []}",
            "Sequential.schedules must be a tuple, got Cosine",
        ),
    ],
)
def test_what_is_refused_in_a_file(capsys, tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert message in refused(capsys, "--config", str(path))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "&a {class_path: Sequential, init_args: {schedules: [*a, *a], milestones: [0.5]}}",
            "the value 'a' contains itself",
        ),
        (
            "{class_path: Restarts, init_args: {schedule: " * 3000 + "Cosine" + "}}" * 3000,
            "values are nested more than 100 deep",
        ),
        ("schedules: &a [*a, *a]", "the value 'a' contains itself"),
        ("schedules: {a: {class_path: Cosine, lr: &a [*a]}}", "the value 'a' contains itself"),
        ("steps: " + "9" * 5000, "Exceeds the limit"),
        ("schedules: [" + "Cosine, " * 1000 + "]", "at most 50 schedules are drawn, got 1,000"),
        ('"a\\nb": 3', r"unknown key 'a\nb'"),
        (
            "schedules:\n  a0: &a0 {class_path: Cosine}\n"
            + "".join(
                f"  a{level}: &a{level} {{class_path: Sequential, init_args: {{schedules: [*a{level - 1}, "
                f"*a{level - 1}], milestones: [0.5]}}}}\n"
                for level in range(1, 40)
            ),
            "line 14: the file describes more than 100,000 values",
        ),
    ],
    ids=lambda value: str(value)[:25],
)
def test_a_file_made_to_exhaust_the_command_is_refused_in_one_line(capsys, tmp_path, text, message):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    error = refused(capsys, "--config", str(path))
    assert message in error
    assert len(error) < 300


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
from lit_cosine.cli.main import main
main(["preview", *sys.argv[1:]])
print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))
"""


def probe(*argv, code=PROBE, **env):
    command, env = [sys.executable, "-c", code, *argv], {**os.environ, **env}
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=250)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_it_loads_neither_torch_nor_lightning():
    assert probe("Cosine", "--steps", "10").splitlines()[-1] == "[]"
    assert probe("Cosine", code=f"import torch; {PROBE}").splitlines()[-1] != "[]"  # the probe can fail


def test_a_terminal_without_braille_gets_ascii():
    drawn = probe("Cosine", PYTHONIOENCODING="ascii")
    assert drawn.isascii()
    assert "*" in drawn


def test_the_bound_beside_linears(capsys):
    """The ratios that tests/schedules/test_bound.py knows; the cooldown is a share of the run here: 9,940 of 50,000."""
    run = ["--steps", "50000", "--warmup", "300step", "--bound"]
    assert main(["preview", "Cosine", "Constant", *run]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert rows == [["A", "Cosine()", "1.0300", "0.9709"], ["B", "Constant()", "1.7609", "0.2848"]]
    assert main(["preview", "Constant", *run, "--cooldown", "9940step", "--cooldown_schedule", "Linear"]) == 0
    assert capsys.readouterr().out.split()[-2:] == ["1.0805", "0.5155"]
    assert "at one step at least, got 0 at every step" in refused(capsys, "Constant", "--value", "0", "--bound")
