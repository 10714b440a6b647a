"""Mistakes of a new user in Python: the message names the argument and says what to write."""

from pathlib import Path

import pytest
import torch

from lit_cosine import (
    Cosine,
    LearningRateScheduler,
    ScheduleAudit,
    ScheduleLR,
    SimpleNN,
    SyntheticDataModule,
    compare_networks,
    lr_scheduler_config,
)
from tests.helpers.nets import Net, trainer


def adam():
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(()))], lr=0.1)


def fit(*callbacks, finish=None, max_epochs=3):
    trainer(*callbacks, max_epochs=max_epochs).fit(Net(finish))


def config(optimizer, trainer):
    return lr_scheduler_config(optimizer, Cosine(), trainer)


def in_epochs(optimizer, trainer):
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 24)}


MISTAKES = {
    "a bare number": (
        lambda: LearningRateScheduler(Cosine(), warmup=500),
        'warmup must name its unit, got 500: write "500step"',
    ),
    "a number as text": (
        lambda: LearningRateScheduler(Cosine(), warmup="5"),
        "warmup must name its unit, got '5': write \"5step\"",
    ),
    "an unknown unit": (
        lambda: LearningRateScheduler(Cosine(), warmup="5 percent"),
        "warmup has the unknown unit 'percent'; known are step",
    ),
    "a warmup longer than the run": (
        lambda: fit(LearningRateScheduler(Cosine(), warmup="500step")),
        'warmup ("500step", 500) must be shorter than the run, got a run of 24 steps',
    ),
    "a schedule's name": (
        lambda: LearningRateScheduler("cosine"),
        "schedule must be a schedule such as Cosine(end=0.1), got 'cosine'",
    ),
    "a class": (
        lambda: LearningRateScheduler(Cosine),
        "schedule must be a schedule, got the class Cosine: write Cosine()",
    ),
    "a scheduler of torch": (
        lambda: LearningRateScheduler(torch.optim.lr_scheduler.CosineAnnealingLR(adam(), 10)),
        "schedule must be a schedule such as Cosine(end=0.1), got <torch.optim.lr_scheduler.CosineAnnealingLR",
    ),
    "T_max": (lambda: Cosine(T_max=100), "Cosine has no argument 'T_max': the length comes from the run"),
    "eta_min": (lambda: Cosine(eta_min=1e-5), "Cosine has no argument 'eta_min': a floor is a factor of the peak LR"),
    "a length": (
        lambda: Cosine(100),
        "Cosine takes keyword arguments alone (start, end, k), got 100; the length comes from",
    ),
    "a negative floor": (lambda: Cosine(end=-0.1), "Cosine.end must be finite and >= 0, got -0.1"),
    "the callback twice": (
        lambda: fit(LearningRateScheduler(Cosine()), LearningRateScheduler(Cosine())),
        "a Trainer takes one LearningRateScheduler, got several",
    ),
    "callback and module": (
        lambda: fit(LearningRateScheduler(Cosine()), finish=in_epochs),
        "configure_optimizers already returns a scheduler (CosineAnnealingLR): let it return the optimizer",
    ),
    "the configuration alone": (lambda: fit(finish=config), "configure_optimizers must return the optimizer too"),
    "the interval forgotten": (lambda: fit(ScheduleAudit("raise"), finish=in_epochs), "[epoch-interval]"),
    "no max_epochs": (
        lambda: fit(LearningRateScheduler(Cosine()), max_epochs=-1),
        "the run has no end, so no number of steps: give the Trainer max_epochs or max_steps",
    ),
    "no Trainer": (lambda: lr_scheduler_config(adam(), Cosine(), None), "trainer must be a Trainer, as self.trainer"),
    "parameters": (
        lambda: ScheduleLR([torch.nn.Parameter(torch.zeros(()))], Cosine(), total_steps=10),
        "optimizer must be a torch.optim.Optimizer, got ",
    ),
    "a share of steps": (
        lambda: ScheduleLR(adam(), Cosine(), total_steps=100, warmup_steps=0.1),
        "warmup_steps must be an integer >= 0, got 0.1",
    ),
    "a network": (
        lambda: compare_networks(SimpleNN(2, 2), SyntheticDataModule(), [Cosine()], [0.1], 2, 1),
        "SimpleNN",
    ),
}


@pytest.mark.filterwarnings("ignore:Found unsupported keys in the optimizer configuration")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_message_says_what_to_write(mistake):
    make, said = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as refused:
        make()
    assert said in str(refused.value)


# at the command line: mistake -> the test of what it says
AT_THE_COMMAND_LINE = {
    "a misspelt flag, a wrong type, YAML indentation, a missing file, LR 0": (
        "cli/test_mistakes.py", "test_a_mistake_gets_one_line_that_says_what_to_write",
    ),
    "resume of a finished run": (
        "cli/test_resume.py", "test_a_finished_run_is_complete_and_says_what_would_train_on",
    ),
    "a folder that holds something else": (
        "comparison/test_report.py", "test_what_the_command_line_tells_is_refused_in_one_sentence_before_torch",
    ),
    "a port in use": ("cli/test_board.py", "test_a_busy_port_is_named_and_the_next_one_taken_on_loopback_alone"),
    "Ctrl-C": ("cli/test_signals.py", "test_from_the_first_batch_on_the_run_can_be_continued"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", AT_THE_COMMAND_LINE)
def test_the_command_line_has_its_own(mistake):
    file, name = AT_THE_COMMAND_LINE[mistake]
    assert f"def {name}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")
