"""Published libraries train under LearningRateScheduler as they are, the recipes of docs/inside-another-library.md.

They choose their optimizer themselves, many a scheduler with it, and some build their own Trainer. Needs the extra
`published`; darts and pina are tried where they are installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lit_cosine import Cosine, ExactResume, LearningRateScheduler, Linear, ScheduleAudit
from tests.helpers.nets import Transfer, trainer
from tests.helpers.witnesses import Used, cosine

pytestmark = pytest.mark.published

SCHEDULE = Cosine(end=0.1)


def lrs(peak: float, total: int, warmup: int) -> list[list[Any]]:
    """Return what every update must use: a warmup, then a cosine to a tenth of the peak."""
    return [[pytest.approx(peak * cosine(k, total, warmup, 0.1), rel=1e-12)] for k in range(total)]


# 2026-11, pytorch-forecasting 1.8.0: its metrics are among its hyperparameters
@pytest.mark.filterwarnings("ignore:Attribute '.*' is an instance of `nn.Module` and is already saved:UserWarning")
# 2026-11: true of every test here
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning")
class TestPytorchForecasting:
    """A temporal fusion transformer on four sine waves: 2 epochs of 7 batches."""

    @staticmethod
    def model_and_loader() -> tuple[Any, Any]:
        forecasting = pytest.importorskip("pytorch_forecasting")
        import pandas

        pl.seed_everything(0, verbose=False)
        t = np.arange(68)
        rows = pandas.concat(
            [pandas.DataFrame({"series": str(i), "t": t, "y": np.sin(t / 5 + i) + i}) for i in range(4)],
            ignore_index=True,
        )
        dataset = forecasting.TimeSeriesDataSet(
            rows,
            time_idx="t",
            target="y",
            group_ids=["series"],
            max_encoder_length=12,
            max_prediction_length=4,
            static_categoricals=["series"],
            time_varying_known_reals=["t"],
            time_varying_unknown_reals=["y"],
        )
        sizes = {"hidden_size": 8, "attention_head_size": 1, "hidden_continuous_size": 4, "optimizer": "adam"}
        loader = dataset.to_dataloader(train=True, batch_size=28)
        model = forecasting.TemporalFusionTransformer.from_dataset(dataset, learning_rate=0.03, **sizes)
        return model, loader

    def test_every_update_has_its_lr(self) -> None:
        model, loader = self.model_and_loader()
        used, audit = Used(), ScheduleAudit("raise")
        scheduler = LearningRateScheduler(SCHEDULE, warmup="3step", replace=True)
        trainer(scheduler, audit, used, max_epochs=2, gradient_clip_val=0.1).fit(model, loader)
        assert used.rows == [lrs(0.03, 14, 3)]
        assert (audit.findings, audit.differences) == ([], [])
        (planned,) = audit.plan
        assert (planned.name, planned.peak, planned.after) == ("lr-Adam", 0.03, pytest.approx(0.003, rel=1e-12))

    def test_it_says_what_to_do_about_the_models_own_scheduler(self) -> None:
        model, loader = self.model_and_loader()
        with pytest.raises(ValueError, match=r"already returns a scheduler \(ReduceLROnPlateau\): .* replace=True"):
            trainer(LearningRateScheduler(SCHEDULE), max_epochs=2).fit(model, loader)

    def test_of_its_own_scheduler_the_audit_says_that_nobody_knows(self, capsys: pytest.CaptureFixture[str]) -> None:
        model, loader = self.model_and_loader()
        audit = ScheduleAudit("print")
        with pytest.warns(RuntimeWarning, match="metric val_loss which is not available"):
            trainer(audit, max_epochs=1).fit(model, loader)
        assert audit.findings == []
        assert audit.plan[0].depends == "the metric val_loss"
        assert "lr-Adam 0.03, then depends on the metric val_loss (ReduceLROnPlateau)" in capsys.readouterr().out

    def test_what_it_makes_of_a_list_of_lrs_is_audited_too(self) -> None:
        model, loader = self.model_and_loader()
        model.hparams.learning_rate = [0.03, 0.02, 0.01]  # one for each epoch
        audit, used = ScheduleAudit("raise"), Used()
        trainer(audit, used, max_epochs=3).fit(model, loader)
        assert used.rows[0][::7] == [[0.03], [pytest.approx(0.02, rel=1e-12)], [pytest.approx(0.01, rel=1e-12)]]
        assert (audit.findings, audit.differences, audit.plan[0].changes) == ([], [], 2)

    @pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # 2026-11: it is
    def test_a_run_that_crashed_goes_on_with_its_lr(self, tmp_path: Path) -> None:
        class Crash(pl.Callback):
            def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
                if trainer.current_epoch == 1:
                    raise RuntimeError("the machine is gone")

        def fit(*callbacks: Any, **options: Any) -> Used:
            model, loader = self.model_and_loader()
            scheduler = LearningRateScheduler(SCHEDULE, warmup="3step", replace=True)
            checkpoints = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True)
            trainer(scheduler, used := Used(), checkpoints, *callbacks, max_epochs=2).fit(model, loader, **options)
            return used

        with pytest.raises(RuntimeError, match="the machine is gone"):
            fit(Crash())
        # its hyperparameters are objects: its checkpoints load in no other way, and ExactResume refuses them
        assert fit(ckpt_path=tmp_path / "last.ckpt", weights_only=False).rows == [lrs(0.03, 14, 3)[7:]]

    def test_exact_resume_refuses_before_training_what_it_could_not_load(self, tmp_path: Path) -> None:
        model, loader = self.model_and_loader()
        with pytest.raises(ValueError, match="TemporalFusionTransformer's hyperparameters must hold only tensors and"):
            trainer(ExactResume(tmp_path), max_epochs=1, enable_checkpointing=True).fit(model, loader)


# 2026-11: true of every test here
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`:UserWarning")
# 2026-11, GluonTS 0.17.0 on torch 2.13: it indexes with a list
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning")
# 2026-11, GluonTS 0.17.0: DeepAR's dropout in an LSTM of one layer
@pytest.mark.filterwarnings("ignore:dropout option adds dropout after all but last recurrent layer:UserWarning")
class TestGluonTS:
    """DeepAR and a feed-forward net on four sine waves: 2 epochs of 8 batches, from a stream without a length."""

    @staticmethod
    def train(estimator: str, *callbacks: Any, **options: Any) -> Any:
        gluonts = pytest.importorskip("gluonts.torch")
        import pandas
        from gluonts.dataset.pandas import PandasDataset

        pl.seed_everything(0, verbose=False)
        days = pandas.date_range("2020", periods=100, freq="D")
        waves = np.float32(np.sin(np.arange(100) / 7 + np.arange(4)[:, None]) + 2)
        dataset = PandasDataset(
            {str(i): pandas.DataFrame({"target": wave}, index=days) for i, wave in enumerate(waves)}
        )
        sizes = (
            {"num_layers": 1, "hidden_size": 8, "freq": "D"} if estimator == "DeepAR" else {"hidden_dimensions": [8]}
        )
        predictor = getattr(gluonts, f"{estimator}Estimator")(
            prediction_length=5,
            context_length=10,
            lr=0.01,
            batch_size=16,
            num_batches_per_epoch=8,
            trainer_kwargs={
                "max_epochs": 2,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "callbacks": list(callbacks),
                **options,
            },
            **sizes,
        ).train(dataset)
        return next(iter(predictor.predict(dataset)))

    @pytest.mark.parametrize(("estimator", "replace"), [("DeepAR", True), ("SimpleFeedForward", False)])
    def test_every_update_has_its_lr(
        self, estimator: str, replace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)  # where its Trainer puts checkpoints
        used, audit = Used(), ScheduleAudit("raise")
        scheduler = LearningRateScheduler(SCHEDULE, warmup="3step", replace=replace)
        forecast = self.train(estimator, scheduler, audit, used, limit_train_batches=8)
        assert used.rows == [lrs(0.01, 16, 3)]
        assert (audit.findings, audit.differences) == ([], [])
        assert forecast.mean.shape == (5,)
        assert np.isfinite(forecast.mean).all()

    def test_it_says_what_a_stream_without_a_length_needs(self) -> None:
        with pytest.raises(ValueError, match=r"has no length, .* give the Trainer max_steps or limit_train_batches"):
            self.train("SimpleFeedForward", LearningRateScheduler(SCHEDULE))


def chemprop(*callbacks: Any, folder: Path | None = None, ckpt_path: Path | None = None) -> None:
    data, models, nn = (pytest.importorskip(f"chemprop.{part}") for part in ("data", "models", "nn"))
    alkanes = data.MoleculeDataset([data.MoleculeDatapoint.from_smi("C" * n, [float(n)]) for n in range(1, 29)])
    model = models.MPNN(
        nn.BondMessagePassing(d_h=8, depth=2), nn.MeanAggregation(), nn.RegressionFFN(input_dim=8), init_lr=0.01
    )
    saving = [pl.callbacks.ModelCheckpoint(folder, save_last=True)] if folder else []
    # its hyperparameters are objects
    trainer(*callbacks, *saving, max_epochs=2).fit(
        model, data.build_dataloader(alkanes, batch_size=4), ckpt_path=ckpt_path, weights_only=False
    )


def scvi(*callbacks: Any, folder: Path | None = None, ckpt_path: Path | None = None) -> None:
    # 2026-11, scvi-tools 1.4.2: beside jax and optax, as in the extra benchmark, its import fails without flax
    scvi, anndata = pytest.importorskip("scvi", exc_type=ImportError), pytest.importorskip("anndata")
    cells = anndata.AnnData(np.random.default_rng(0).poisson(2.0, (62, 10)).astype("float32"))
    scvi.model.SCVI.setup_anndata(cells)
    saving = [pl.callbacks.ModelCheckpoint(folder, save_last=True)] if folder else []
    scvi.model.SCVI(cells, n_hidden=8, n_latent=2).train(
        max_epochs=2,
        batch_size=8,
        train_size=0.9,
        accelerator="cpu",
        plan_kwargs={"lr": 0.01, "reduce_lr_on_plateau": True},
        callbacks=[*callbacks, *saving],
        enable_checkpointing=bool(folder),
        enable_progress_bar=False,
        ckpt_path=ckpt_path,
    )


def neuralforecast(*callbacks: Any, folder: Path | None = None, ckpt_path: Path | None = None) -> None:
    models = pytest.importorskip("neuralforecast.models")
    import pandas
    import pytorch_lightning
    from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

    days = pandas.date_range("2020", periods=60, freq="D")
    waves = [pandas.DataFrame({"unique_id": str(i), "ds": days, "y": np.sin(np.arange(60) / 5 + i)}) for i in range(4)]
    dataset = TimeSeriesDataset.from_df(pandas.concat(waves))[0]
    saving = pytorch_lightning.callbacks.ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    model = models.MLP(
        h=4,
        input_size=12,
        num_layers=1,
        hidden_size=8,
        learning_rate=0.01,
        max_steps=14,
        val_check_steps=14,
        batch_size=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=bool(folder),
        callbacks=[*callbacks, *([saving] if folder else [])],
    )
    if ckpt_path is None:
        model.fit(dataset)
    else:  # its fit takes no checkpoint
        model.val_size = model.test_size = 0
        loader = TimeSeriesDataModule(dataset, batch_size=2)
        pytorch_lightning.Trainer(**model.trainer_kwargs).fit(model, loader, ckpt_path=ckpt_path, weights_only=False)


def darts(*callbacks: Any) -> None:
    models, series = pytest.importorskip("darts.models"), pytest.importorskip("darts").TimeSeries
    models.NLinearModel(
        12,
        4,
        batch_size=7,
        n_epochs=2,
        optimizer_kwargs={"lr": 0.01},
        lr_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR,
        lr_scheduler_kwargs={"gamma": 0.9},
        pl_trainer_kwargs={"accelerator": "cpu", "callbacks": [*callbacks], "enable_progress_bar": False},
    ).fit(series.from_values(np.sin(np.arange(64) / 5).astype("float32")))


def pina(*callbacks: Any) -> None:
    pina, solvers = pytest.importorskip("pina"), pytest.importorskip("pina.solver")
    from pina.optim import TorchOptimizer
    from pina.problem.zoo import SupervisedProblem

    x = torch.arange(28.0).unsqueeze(1)
    solver = solvers.SupervisedSolver(
        SupervisedProblem(x, 2 * x),
        torch.nn.Linear(1, 1),
        optimizer=TorchOptimizer(torch.optim.Adam, lr=0.01),
        use_lt=False,
    )
    trainer(*callbacks, cls=lambda **options: pina.Trainer(solver, batch_size=4, **options), max_epochs=2).train()


@pytest.mark.filterwarnings("ignore")  # 2026-11: what they warn of on numpy 2.4 and torch 2.13 is their own
class TestRecipes:
    """14 updates; each library at its own door and with its own scheduler, which is replaced."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # where some put logs and checkpoints
        pl.seed_everything(0, verbose=False)

    @staticmethod
    def scheduler() -> LearningRateScheduler:
        return LearningRateScheduler(SCHEDULE, warmup="3step", replace=True)

    @pytest.mark.parametrize("train", [chemprop, scvi, neuralforecast, darts, pina])
    def test_every_update_has_its_lr(self, train: Any) -> None:
        used, audit = Used(), ScheduleAudit("raise")
        train(self.scheduler(), audit, used)
        assert used.rows == [lrs(0.01, 14, 3)]
        assert (audit.findings, audit.differences) == ([], [])

    @pytest.mark.parametrize("train", [chemprop, scvi, neuralforecast])
    def test_a_run_that_crashed_goes_on_with_its_lr(self, train: Any, tmp_path: Path) -> None:
        class Crash(pl.Callback):
            def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
                if trainer.current_epoch == 1:
                    raise RuntimeError("the machine is gone")

        before, after = Used(), Used()
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train(self.scheduler(), before, Crash(), folder=tmp_path)
        train(self.scheduler(), after, ckpt_path=tmp_path / "last.ckpt")
        assert len(before.rows[0]) == (2 if train is neuralforecast else 7)
        assert [before.rows[0] + after.rows[0]] == [lrs(0.01, 14, 3)]


class Thaws(Transfer):
    """A backbone that the finetuning-scheduler thaws, and the validation loss that it asks for."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.tensor(1.0))

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


# 2026-11, finetuning-scheduler 2.14.1 under lightning 2.6.6 and python 3.11
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_group_of_the_finetuning_scheduler_has_its_own_curve_and_warmup(tmp_path: Path, ours_first: bool) -> None:
    scheduler = pytest.importorskip("finetuning_scheduler").FinetuningScheduler
    phases = {
        0: {"params": ["layer.weight", "layer.bias"], "max_transition_epoch": 1},
        1: {"params": [r"backbone\..*"], "lr": 0.02, "max_transition_epoch": 3},
    }
    theirs = scheduler(ft_schedule=phases, epoch_transitions_only=True, restore_best=False)
    ours = LearningRateScheduler(Cosine(), groups={"pg2": {"schedule": Linear(), "warmup": "3step"}})
    model = Thaws()
    logger = pl.loggers.CSVLogger(tmp_path)
    callbacks = (ours, theirs) if ours_first else (theirs, ours)
    run = trainer(*callbacks, max_epochs=4, logger=logger, enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(model)
    assert len(model.used) == 32
    assert model.lrs == pytest.approx([0.1 * cosine(k, 32, 0, 0.0) for k in range(32)], rel=1e-12)
    # the second phase begins with epoch 1: 3 steps of warmup from update 8 on, over a line from 3 to 32
    expected = [0.02 * min(1.0, (k - 7) / 4) * (1 - (k - 3) / 29) for k in range(8, 32)]
    assert [lrs[1] for lrs in model.used[8:]] == pytest.approx(expected, rel=1e-12)
    assert all(len(lrs) == 1 for lrs in model.used[:8])
