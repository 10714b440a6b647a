import pytest
import torch
from lightning.pytorch import Callback
from nets import Net, trainer
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from lit_cosine import LitClassifier, SyntheticDataModule
from lit_cosine.rows import RowLoader, TensorRows, as_fetched
from lit_cosine.sampler import EpochSampler

X, Y = torch.arange(50.0).reshape(25, 2), torch.arange(25)


def loader(cls, **arguments):
    """Return a loader of either class over the same rows; DataLoader is the witness."""
    rows = TensorRows(X, Y)
    if "seed" in arguments:
        arguments["sampler"] = EpochSampler(rows, 4, arguments.pop("seed"), drop_last=arguments.get("drop_last", False))
    if arguments.pop("dealt", False):
        arguments["sampler"] = DistributedSampler(rows, 2, 1, shuffle=False)
    return cls(rows, batch_size=4, collate_fn=as_fetched, **arguments)


def batches(loader, epochs=2):
    return [[x.tolist() + y.tolist() for x, y in loader] for _ in range(epochs)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"drop_last": True}, {"seed": 3}, {"seed": 3, "drop_last": True}, {"dealt": True}, {"num_workers": 1}],
)
def test_the_batches_are_dataloaders(arguments):
    ours = loader(RowLoader, **arguments)
    assert batches(ours) == batches(loader(DataLoader, **arguments))
    assert len(ours) == len(list(ours))


def test_of_a_sampler_it_does_not_know_it_takes_what_that_draws():
    rows = TensorRows(X, Y)
    orders = []
    for cls in (RowLoader, DataLoader):
        sampler = RandomSampler(rows, generator=torch.Generator().manual_seed(1))
        orders.append(batches(cls(rows, 4, sampler=sampler, collate_fn=as_fetched)))
    assert orders[0] == orders[1]


def test_a_collation_of_the_users_own_is_called():
    seen = [labels.tolist() for labels in RowLoader(TensorRows(Y), 4, collate_fn=lambda batch: batch + 1)]
    assert seen[0] == [1, 2, 3, 4]


def test_the_order_is_not_asked_for_before_the_first_batch():
    lazy = loader(RowLoader, seed=3)
    iterator = iter(lazy)
    lazy.sampler.set_epoch(7)
    expected = loader(DataLoader, seed=3)
    expected.sampler.set_epoch(7)
    assert next(iterator)[1].tolist() == next(iter(expected))[1].tolist()


def test_batches_in_order_are_views_and_copy_nothing():
    rows = TensorRows(X, Y)
    (first, _), *_ = RowLoader(rows, 4, collate_fn=as_fetched)
    assert first.untyped_storage().data_ptr() == X.untyped_storage().data_ptr()


class Seen(Callback):
    def __init__(self):
        self.batches, self.loaders = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0])
        self.loaders.append(trainer.train_dataloader)


def test_lightning_builds_it_again_with_another_sampler():
    data, seen = SyntheticDataModule(n_samples=100, batch_size=16), Seen()
    with pytest.warns(UserWarning, match="turning off the train dataloader shuffling"):
        trainer(seen, max_epochs=2, overfit_batches=2).fit(LitClassifier(), data)
    assert type(seen.loaders[-1]) is RowLoader
    assert type(seen.loaders[-1].sampler) is SequentialSampler
    x = data.train_dataloader().dataset.tensors[0]
    assert [batch.tolist() for batch in seen.batches] == [x[:16].tolist(), x[16:32].tolist()] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_data_lies_there_and_so_do_the_batches():
    data, seen = SyntheticDataModule(n_samples=100, batch_size=16), Seen()
    run = trainer(seen, max_epochs=1, accelerator="gpu")
    run.fit(LitClassifier(), data)
    assert {rows.tensors[0].device.type for rows in data._parts.values()} == {"cuda"}
    assert {batch.device.type for batch in seen.batches} == {"cuda"}
    assert run.optimizers[0].param_groups[0]["fused"]
    on_cpu = Seen()
    trainer(on_cpu, max_epochs=1).fit(LitClassifier(), SyntheticDataModule(n_samples=100, batch_size=16))
    assert [batch.tolist() for batch in seen.batches] == [batch.tolist() for batch in on_cpu.batches]


def test_without_a_datamodule_of_ours_any_module_trains_on_it():
    rows = TensorRows(torch.randn(32, 3), torch.randn(32, 1))
    model = Net()
    trainer(max_epochs=1).fit(model, RowLoader(rows, 8, collate_fn=as_fetched))
    assert len(model.used) == 4
