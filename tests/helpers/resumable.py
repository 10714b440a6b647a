"""A small training that draws random numbers from every source, to be resumed and compared."""

import hashlib
import json
import random
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_cosine import Cosine, ExactResume, LearningRateScheduler, LitClassifier, SyntheticDataModule
from lit_cosine.checkpoint import EpochSampler

EPOCHS, BATCHES = 3, 6


class Own(pl.LightningModule):
    """A user's module without a scheduler, with noise from numpy and Python besides dropout's."""

    def __init__(self, noise=True):
        super().__init__()
        self.noise = noise
        self.network = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Dropout(0.3 if noise else 0.0), nn.Linear(8, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.noise:
            x = x * random.uniform(0.9, 1.1) + np.random.normal(0, 0.1)
        return nn.functional.cross_entropy(self.network(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", nn.functional.cross_entropy(self.network(x), y), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class OwnData(pl.LightningDataModule):
    """A user's rows, with EpochSampler as its docstring shows."""

    def __init__(self, workers=0, batch_size=10):
        super().__init__()
        self.workers, self.batch_size = workers, batch_size

    def setup(self, stage):
        rows = torch.Generator().manual_seed(3)
        x = torch.randn(10 * BATCHES + 10, 20, generator=rows)
        y = (x[:, 0] > 0).long()
        self.rows, self.held_out = TensorDataset(x[:-10], y[:-10]), TensorDataset(x[-10:], y[-10:])
        self.sampler = EpochSampler(self.rows, self.batch_size, seed=5)

    def train_dataloader(self):
        loading = {"num_workers": self.workers, "generator": self.sampler.generator}
        return DataLoader(self.rows, self.batch_size, sampler=self.sampler, **loading)

    def val_dataloader(self):
        return DataLoader(self.held_out, 5, generator=torch.Generator())

    def state_dict(self):
        return self.sampler.state_dict(self.trainer)

    def load_state_dict(self, state):
        self.sampler.load_state_dict(state)


class Trace(pl.Callback):
    """Records every batch, and the LR of every update."""

    def __init__(self, path=None, pause=0.0):
        self.rows, self.path, self.pause = [], path, pause
        self._lrs = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._lrs = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in batch)).hexdigest()[:16]
        row = [trainer.current_epoch, batch_idx, digest, self._lrs]
        self._lrs = None
        self.rows.append(row)
        if self.path is not None and trainer.is_global_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        time.sleep(self.pause)


def weights(model):
    """Return the sha256 of every weight, by name and in order."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def build(folder, road="callback", accumulate=1, workers=0, trace=None, checkpoints=None, callbacks=(), **trainer):
    """Return a Trainer, a model and a DataModule; the same each time but for the arguments."""
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    if road == "module":
        network = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
        model = LitClassifier(network, schedule=Cosine(end=0.1), interval="step", warmup="2step")
        data = SyntheticDataModule(n_samples=75, batch_size=10, num_workers=workers)
        schedulers = []
    else:
        # the batch of all processes together is the same however many they are
        processes = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
        model, data = Own(noise=road != "noiseless"), OwnData(workers, 10 // processes)
        schedulers = [LearningRateScheduler(Cosine(end=0.1), warmup="2step")]
    if checkpoints is None:
        checkpoints = ExactResume(Path(folder) / "checkpoints", every_n_train_steps=1, keep=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    arguments = {"max_epochs": EPOCHS, "accumulate_grad_batches": accumulate, "num_sanity_val_steps": 0, **quiet}
    watch = [] if trace is None else [trace]
    run = pl.Trainer(
        default_root_dir=folder, callbacks=[*schedulers, *watch, *callbacks, checkpoints], **{**arguments, **trainer}
    )
    return run, model, data


def run(folder, road, accumulate, pause=0.0, **arguments):
    """Start or resume the run of ``folder``; its batches go into the file trace, and its final weights into done."""
    checkpoints = ExactResume(folder / "checkpoints", every_n_train_steps=1)
    trace = Trace(folder / "trace", pause)
    started = any((folder / "checkpoints").glob("*.ckpt"))
    trainer, model, data = build(folder, road, accumulate, trace=trace, checkpoints=checkpoints, **arguments)
    trainer.fit(model, data, ckpt_path="last" if started else None)
    (folder / "done").write_text(weights(model))
