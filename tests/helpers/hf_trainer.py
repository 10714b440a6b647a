"""transformers' own Trainer on a small regression, and the LR of every update that it really made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.players import PEAK, need


class Regression(nn.Module):
    """Linear regression on eight batches of four; the batches that are named overflow."""

    def __init__(self, overflows: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.overflows = overflows
        self.seen = -1

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.seen += 1
        loss = nn.functional.mse_loss(self.layer(x), labels)
        return {"loss": loss * float("inf") if self.seen in self.overflows else loss}


class Trained:
    """A run under a cosine, or under ``scheduler``; ``lrs`` is what its updates used, ``history`` what it logged."""

    def __init__(self, folder: Path, overflows: tuple[int, ...], scheduler: Any, **arguments: Any) -> None:
        transformers = need("transformers")
        need("accelerate")
        model = Regression(overflows)
        x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
        rows = [{"x": row, "labels": row.sum(0, keepdim=True)} for row in x]
        self.lrs: list[float] = []
        optimizer = torch.optim.SGD(model.parameters(), lr=PEAK)
        optimizer.register_step_pre_hook(lambda used, a, k: self.lrs.append(float(used.param_groups[0]["lr"])))
        quiet = {"use_cpu": True, "report_to": [], "save_strategy": "no"}
        settings = transformers.TrainingArguments(
            output_dir=str(folder),
            lr_scheduler_type="cosine",
            per_device_train_batch_size=4,
            disable_tqdm=True,
            max_grad_norm=0.0,
            **quiet,
            **arguments,
        )
        trainer = transformers.Trainer(
            model, settings, train_dataset=rows, optimizers=(optimizer, scheduler and scheduler(optimizer))
        )
        if overflows:  # what mixed precision on a GPU would bring
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        trainer.train()
        self.history = trainer.state.log_history


def trained(folder: Path, *, overflows: tuple[int, ...] = (), scheduler: Any = None, **arguments: Any) -> Trained:
    return Trained(folder, overflows, scheduler, **arguments)
