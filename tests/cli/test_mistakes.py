"""Mistakes of a new user at the command line: one line that says what to write, and exit status 2."""

import sys
from pathlib import Path

import pytest

from lit_cosine.cli.main import main

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefg", "bcdefgh", strict=True)
)
FILES = {
    "indent.yaml": "model:\n  lr: 0.1\n schedule: Cosine\n",
    "top.yaml": "max_epochs: 3\n",
    "key.yaml": "model:\n  learning_rate: 0.1\n",
    "sched.yaml": "model:\n  schedule: cosine\n",
    "tkey.yaml": "trainer:\n  max_epoch: 3\n",
    "trian.yaml": "trian:\n  max_epochs: 3\n",
    "type.yaml": "trainer:\n  max_steps: 3\n  max_epochs: many\n",
    "good.yaml": "model:\n  lr: 0.1\n",
    "zero.yaml": "model:\n  lr: 0\n",
    "floor.yaml": "model:\n  lr: 0.1\n  schedule: {class_path: lit_cosine.Cosine, init_args: {eta_min: 0.1}}\n",
    "twice.yaml": "model:\n  lr: 0.1\n  lr: 0.2\n",
    "list.yaml": "- a\n",
    "bomb.yaml": BOMB,
    "cycle.yaml": "model: &m {network: *m}\n",
    "deep.yaml": "model: " + "[" * 3000 + "]" * 3000,
}
DIGITS = "1" * 40

# what is refused without torch
LIGHT = {
    "trian": "unknown subcommand 'trian'; did you mean train?",
    "train --modle.lr 0.1": "unknown option --modle.lr; did you mean --model.lr?",
    "train --lr 0.1": "unknown option --lr; did you mean --model.lr?",
    "train --max-epochs 3": "unknown option --max_epochs; did you mean --trainer.max_epochs?",
    "train --res": "unknown option --res; did you mean --resume?",
    "train --model.schedule cosine": "model.schedule: unknown schedule 'cosine'; did you mean Cosine?",
    "train --config": "--config needs a file",
    "train --config nowhere.yaml": "config: cannot read nowhere.yaml: No such file or directory",
    "train --config /dev/null": "config: /dev/null must be a regular file, as it is read more than once",
    "train --config /dev/zero": "config: /dev/zero is larger than 1,048,576 characters, which no configuration is",
    "train --config indent.yaml": "config: indent.yaml is not YAML, see line 3: expected <block end>",
    "train --config top.yaml": "top.yaml, line 1: unknown key 'max_epochs'; did you mean trainer: {max_epochs}?",
    "train --config trian.yaml": "trian.yaml, line 1: unknown key 'trian'; did you mean trainer?",
    "train --config sched.yaml": "sched.yaml, line 2: model.schedule: unknown schedule 'cosine'; did you mean Cosine?",
    "train --config twice.yaml": "config: twice.yaml, line 3: the key 'lr' stands twice",
    "train --config list.yaml": "config: list.yaml must hold options by name, got ['a']",
    "train --config bomb.yaml": "config: bomb.yaml, line 6: the file describes more than 100,000 values",
    "train --config cycle.yaml": "config: cycle.yaml, line 1: the value 'm' contains itself",
    "train --config deep.yaml": "config: deep.yaml, line 1: values are nested more than 100 deep",
    "audit --config deep.yaml": "config: deep.yaml, line 1: values are nested more than 100 deep",
    "test": "ckpt_path must name a checkpoint: lit-cosine test --ckpt_path FILE",
    "board nowhere": "FOLDER must be a folder of runs, there is no folder nowhere",
    "preview Cosin": "unknown schedule 'Cosin'; did you mean Cosine?",
    "compare --seed 3": "unknown option --seed; did you mean --seeds?",
    "compare --data char --config top.yaml": "--data must be left out with --config, whose file says what is trained",
    "compare --data char --batch_size 3": "--batch_size must be left out with --config, whose file",
}
# what the classes know
HEAVY = {
    "train --model.learning_rate 0.1": "arguments: --model.learning_rate 0.1; did you mean model.lr?",
    "train --model.lrr 0.1": "arguments: --model.lrr 0.1; did you mean model.lr?",
    "train --model.schedul Cosine": "arguments: --model.schedul Cosine; did you mean model.schedule?",
    "train --config key.yaml": "key.yaml, line 2: Group 'model' does not accept option 'learning_rate'; did you",
    "train --config tkey.yaml": "tkey.yaml, line 2: Group 'trainer' does not accept option 'max_epoch'; did you mean",
    "train --config type.yaml": "type.yaml, line 3: trainer.max_epochs: Expected an integer; got many",
    "train --config good.yaml --model.lr abc": "error: model.lr: Expected a number. Got value: abc",
    "train --config zero.yaml": "zero.yaml, line 2: lr must be finite and > 0, got 0.0",
    "train --config floor.yaml": "floor.yaml, line 3: model.schedule: Cosine has no argument 'eta_min': a floor is",
    "audit --config floor.yaml": "floor.yaml, line 3: model.schedule: Cosine has no argument 'eta_min': a floor is",
    "train --model.schedule.eta_min 0.1": "error: model.schedule: Cosine has no argument 'eta_min': a floor is",
    "train --model.network nowhere.Net": "class_path 'nowhere.Net': No module named 'nowhere'; got nowhere.Net",
    "train --model.lr abc": "model.lr: Expected a number. Got value: abc",
    "train --model.lr 0": "lr must be finite and > 0, got 0.0",
    "train --model.warmup 500": "warmup must name its unit, got '500': write \"500step\"",
    "train --trainer.accumulate_grad_batches 0": "trainer.accumulate_grad_batches must be an integer >= 1, got 0",
    "audit --trainer.overfit_batches 1e308": "trainer.overfit_batches must be below 2**63, got 1e+308",
    f"audit --trainer.devices {2**63}": f"trainer.devices must be at most 1,024, got {2**63}",
    "audit --trainer.check_val_every_n_epoch 0": "trainer.check_val_every_n_epoch must be an integer >= 1, got 0",
    f"train --trainer.max_epochs {DIGITS}": f"trainer.max_epochs must be below 2**63, got {DIGITS}",
    f"train --data.batch_size {DIGITS}": f"data.init_args.batch_size must be below 2**63, got {DIGITS}",
    "test --ckpt_path nowhere.ckpt": "checkpoint nowhere.ckpt was not found",
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)


@pytest.mark.parametrize("line", [*LIGHT, *HEAVY])
def test_a_mistake_gets_one_line_that_says_what_to_write(line, capsys):
    assert main(line.split()) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lit-cosine")]
    assert {**LIGHT, **HEAVY}[line] in error
    assert len(error) < 300
    assert not Path("runs").exists()


def test_a_value_with_newlines_stays_one_line(capsys):
    assert main(["train", "--model.lr", "0.1\n0.2\n" * 1000]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1
    assert len(lines[0]) < 300


def test_a_task_whose_package_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    assert main(["compare", "--data", "mnist1d"]) == 2
    assert "--data mnist1d needs the package mnist1d: pip install 'lit-cosine[evidence]'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "test", "predict", "audit", "compare", "board", "preview"])
def test_help_is_short_and_has_no_list_of_classes(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lit-cosine {command}")
    assert len(shown.splitlines()) <= 150
    assert "known subclasses" not in shown


def test_the_help_of_a_group_lists_its_options(capsys):
    with pytest.raises(SystemExit) as done:
        main(["train", "--help.model"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert "  --model.lr LR" in shown
    assert "  --trainer." not in shown
    assert "known subclasses" not in shown
