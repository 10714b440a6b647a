"""Two published libraries train under LearningRateScheduler as they are: pytorch-forecasting and GluonTS.

Both choose their optimizer themselves, and most of their models a ReduceLROnPlateau with it. GluonTS builds its own
Trainer too. Needs the extra `published`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
from nets import trainer
from witnesses import Used, cosine

from lit_cosine import Cosine, ExactResume, LearningRateScheduler, ScheduleAudit

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
