"""A callback that only watches never ends a training, whatever the loggers, the disk or the module do."""

from __future__ import annotations

import copy
import errno
import gc
import pickle
import shutil
import warnings
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers.logger import Logger

from lit_cosine import (
    Constant,
    CooldownOnPlateau,
    Cosine,
    ExactResume,
    LearningRateLogger,
    LearningRateScheduler,
    Linear,
    ScheduleAudit,
    TrainingCurves,
)
from lit_cosine.dashboard import Dashboard
from lit_cosine.monitors import EpochLine, watching
from tests.helpers.nets import Net, fit


class OwnLogger(Logger):
    """A logger as Lightning's documentation shows it: without ``experiment``."""

    def __init__(self, full: bool = False) -> None:
        super().__init__()
        self.full, self.calls = full, 0

    @property
    def name(self) -> str:
        return "own"

    @property
    def version(self) -> str:
        return "0.1"

    def log_hyperparams(self, params: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls += 1
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


WATCHERS: dict[str, Any] = {
    "LearningRateLogger": lambda: LearningRateLogger(loss_tag="loss"),
    "ScheduleAudit": lambda: ScheduleAudit("print"),
    "TrainingCurves": TrainingCurves,
    "Dashboard": lambda: Dashboard(every_n_steps=1),
    "EpochLine": EpochLine,
}
# 2026-11, lightning 2.6.6: true of every short run with a logger
pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
each_watcher = pytest.mark.parametrize("make", WATCHERS.values(), ids=WATCHERS)
CALLBACKS: dict[str, Any] = {
    **WATCHERS,
    "LearningRateScheduler": lambda: LearningRateScheduler(
        Cosine(), groups={"pg1": Linear()}, weight_decay=Constant(), reference_batch_size=8
    ),
    "CooldownOnPlateau": lambda: CooldownOnPlateau("loss"),
    "ExactResume": lambda: ExactResume("run", monitor=None),
}


@each_watcher
@pytest.mark.parametrize("loggers", [[OwnLogger()], [], [OwnLogger(), OwnLogger()]], ids=["own", "none", "two"])
def test_any_logger_will_do(make: Any, loggers: list[Logger], tmp_path: Path) -> None:
    run = fit(Net(), LearningRateScheduler(Cosine()), make(), logger=loggers, max_epochs=1, default_root_dir=tmp_path)
    assert run.global_step == 8


@pytest.mark.parametrize("name", ["LearningRateLogger", "Dashboard"])
def test_a_logger_that_fails_is_left_out_with_one_warning(name: str) -> None:
    full, working = OwnLogger(full=True), OwnLogger()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(), WATCHERS[name](), logger=[full, working], max_epochs=2)
    said = [str(one.message) for one in caught if "training continues" in str(one.message)]
    reason = "OSError: [Errno 28] No space left on device"
    assert said == [f"{name} writes no more to OwnLogger, and training continues: {reason}"]
    assert (full.calls, working.calls) == (1, 17)  # 16 updates, and the last LR or the training time


def test_a_folder_that_has_gone_is_one_warning(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    class Removes(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 4:
                shutil.rmtree(folder)
                folder.write_text("a file in its place")

    with pytest.warns(UserWarning, match="TrainingCurves stopped, and training continues: on_train_end raised"):
        run = fit(Net(), TrainingCurves(), Removes(), max_epochs=1, default_root_dir=folder)
    assert run.global_step == 8


class Broken(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 3:
            raise RuntimeError("the module's own error")
        return super().training_step(batch, batch_idx)


@each_watcher
@pytest.mark.filterwarnings("ignore:.* stopped, and training continues:UserWarning")
def test_the_users_exception_is_the_one_that_is_raised(make: Any, tmp_path: Path) -> None:
    class Last(pl.Callback):
        seen: BaseException | None = None

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.seen = exception

    last = Last()
    with pytest.raises(RuntimeError, match="the module's own error") as caught:
        fit(Broken(), make(), last, logger=OwnLogger(full=True), max_epochs=1, default_root_dir=tmp_path)
    assert last.seen is caught.value


class Large(Net):
    """A module that holds a megabyte, as one that holds its data set."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytes(1_000_000)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


@pytest.mark.filterwarnings("ignore:batches after a resume within an epoch will not be those:UserWarning")
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("broken", [False, True])
def test_nothing_of_a_run_is_kept_or_pickled(
    make: Any, broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watcher, pickles = make(), []
    saves = isinstance(watcher, ExactResume)

    class Pickles(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            pickles.append(pickle.dumps(watcher))
            copy.deepcopy(watcher)
            if broken and batch_idx == 5:
                raise RuntimeError

    def run(*callbacks: pl.Callback) -> list[weakref.ref[Any]]:
        module = Large()
        options = {"logger": OwnLogger(), "default_root_dir": tmp_path, "enable_checkpointing": saves}
        options |= {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(callbacks=[*callbacks, Pickles()], max_epochs=1, **options)
        with pytest.raises(RuntimeError) if broken else nullcontext():
            trainer.fit(module)
        return [weakref.ref(one) for one in (trainer, module, trainer.optimizers[0])]

    without, refs = run(), run(watcher)
    gc.collect()
    assert [ref() for ref in without] == [None] * 3  # or the test cannot tell
    assert [ref() for ref in refs] == [None] * 3
    pickles.append(pickle.dumps(watcher))
    assert max(map(len, pickles)) < 10_000
    again = pickle.loads(pickles[-1])
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run_again = fit(Large(), again, max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=saves)
    assert run_again.global_step == 8


@watching()
class StopsOnce(pl.Callback):
    """Fails in every hook that it has, until it is mended."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.broken = True

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append("start")
        if self.broken:
            raise KeyError

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.calls.append("end")

    def state_dict(self) -> dict[str, Any]:
        return {"calls": len(self.calls)}

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append("teardown")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append("setup")


def test_a_stopped_callback_is_silent_up_to_the_next_run() -> None:
    callback = StopsOnce()
    with pytest.warns(UserWarning, match=r"StopsOnce stopped, .*: on_train_start raised KeyError: KeyError\(\)"):
        fit(Net(), callback, max_epochs=1)
    assert callback.calls == ["setup", "start", "teardown"]
    assert callback.state_dict() == {}
    callback.broken = False
    fit(Net(), callback, max_epochs=1)
    assert callback.calls[3:] == ["setup", "start", "end", "teardown"]


def test_what_stops_the_program_passes() -> None:
    @watching(ValueError)
    class Raises(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            raise self.error  # type: ignore[attr-defined]

    for error in (KeyboardInterrupt(), SystemExit(3), ValueError("on purpose")):
        callback = Raises()
        callback.error = error  # type: ignore[attr-defined]
        with pytest.raises(type(error)):
            callback.on_train_start(None, None)


class Nameless(OwnLogger):
    @property
    def name(self) -> str:
        raise AttributeError("no name")


def test_a_logger_without_a_name_is_written_to(tmp_path: Path) -> None:
    logger = Nameless()
    watchers = [make() for make in WATCHERS.values()]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*and training continues")
        fit(Net(), *watchers, logger=logger, max_epochs=1, default_root_dir=tmp_path)
    assert logger.calls >= 9  # 8 updates and the LR after them
    assert (tmp_path / "training_curves.png").exists()


@pytest.mark.parametrize("name", ["LearningRateLogger", "TrainingCurves", "Dashboard"])
def test_a_callback_listed_twice_is_refused_before_training(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"^Found more than one stateful callback of type `{name}`"):
        fit(Net(), WATCHERS[name](), WATCHERS[name](), max_epochs=1)
