"""CooldownOnPlateau: begin the cooldown where early stopping would stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import EarlyStopping
from typing_extensions import override

from lit_cosine._checks import STATE_VERSION, as_integer, as_number, check_choice, check_text, read_state, shown
from lit_cosine._compat import forget_module, own_attributes
from lit_cosine.schedules import Duration
from lit_cosine.training._trainer_lr import check_cooldown, schedulers_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["CooldownOnPlateau"]


class CooldownOnPlateau(EarlyStopping):
    """Begins the cooldown when a metric has stopped improving; the run ends after the cooldown.

    Lightning's EarlyStopping decides when. Only exhausted patience begins the cooldown; a metric that is not finite
    stops the run, as EarlyStopping does. Works with LearningRateScheduler and with ``lr_scheduler_config``. With it, a
    constant schedule needs no known end: ``Trainer(max_epochs=-1)``.

    Args:
        monitor: The metric, under the name it is logged by.
        mode: ``"min"`` or ``"max"``.
        patience: Checks without an improvement before the cooldown begins, an integer >= 0.
        min_delta: Smallest change that counts as an improvement.
        cooldown: Length of the cooldown: ``"2000step"``, ``"2ep"``, or a share x of the whole run, s * x / (1 - x)
            after s steps.

    Raises:
        TypeError: If ``patience`` or ``cooldown`` has the wrong type.
        ValueError: If ``patience`` is negative or ``cooldown`` has no length; at the first check, if ``monitor`` is not
            logged.

    >>> CooldownOnPlateau("val/loss", patience=3, cooldown="20%").cooldown
    Duration.parse('20%')
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: str = "min",
        patience: int = 3,
        min_delta: float = 0.0,
        cooldown: str | Duration = "20%",
    ) -> None:
        self.cooldown = Duration.parse(cooldown, "cooldown")
        check_cooldown(self.cooldown)
        check_text("monitor", monitor)
        check_choice("mode", mode, ("min", "max"))
        super().__init__(
            monitor,
            mode=mode,
            patience=as_integer("patience", patience, least=0),
            min_delta=as_number("min_delta", min_delta, least=0.0),
        )

    def __getstate__(self) -> dict[str, Any]:
        return own_attributes(self)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        forget_module(self)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        forget_module(self)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, **super().state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(read_state("CooldownOnPlateau", state_dict, super().state_dict()))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, lambda: super(CooldownOnPlateau, self).on_validation_end(trainer, pl_module))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer, lambda: super(CooldownOnPlateau, self).on_train_epoch_end(trainer, pl_module))

    def _check(self, trainer: Trainer, decide: Any) -> None:
        """Let EarlyStopping decide; where its patience is exhausted, begin the cooldown instead of stopping."""
        schedulers = [one for one in schedulers_of(trainer) if one.key == "lr"]
        if trainer.should_stop or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if any(one.cooling_down for one in schedulers):
            return
        before = self.wait_count
        try:
            decide()
        except RuntimeError as error:  # EarlyStopping's own, which names the metrics in another form
            if self.monitor in trainer.callback_metrics:
                raise
            logged = ", ".join(sorted(map(str, trainer.callback_metrics))) or "nothing"
            got = shown(self.monitor)
            raise ValueError(f"monitor must be a logged metric, got {got}; logged are {logged}") from error
        if not trainer.should_stop or self.wait_count < max(1, self.patience) or self.wait_count == before:
            return  # a metric that is not finite leaves the count as it was
        trainer.should_stop = False
        if not schedulers:
            raise ValueError(
                "CooldownOnPlateau needs LearningRateScheduler, or lr_scheduler_config in configure_optimizers"
            )
        for scheduler in schedulers:
            if scheduler.total_steps is None or scheduler.last_epoch < scheduler.total_steps:  # else the run ends here
                scheduler.start_cooldown_of(self.cooldown)
