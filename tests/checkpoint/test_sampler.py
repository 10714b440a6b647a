import numpy as np
import pytest
import torch

from lit_cosine.checkpoint import EpochSampler


def passes(sampler, epochs):
    orders = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    return orders


def test_order_is_a_function_of_seed_and_epoch():
    first, second, again = passes(EpochSampler(range(50), 10, seed=1), [0, 1, 0])
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))
    # the seed is hashed: with seed + epoch this would be `second`
    assert passes(EpochSampler(range(50), 10, seed=2), [0]) != [second]
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert passes(EpochSampler(range(50), 10, seed=1), [1]) == [second]
    assert torch.equal(before, torch.get_rng_state())


def test_without_lightning_every_complete_pass_moves_to_the_next_epoch():
    sampler = EpochSampler(range(50), 10, seed=1)
    expected = passes(EpochSampler(range(50), 10, seed=1), [0, 1, 2])
    assert [list(sampler), list(sampler)] == expected[:2]
    next(iter(sampler))  # an incomplete pass does not count
    assert list(sampler) == expected[2]


def test_unshuffled_is_in_order():
    assert passes(EpochSampler(range(5), 2, shuffle=False), [0, 3]) == [[0, 1, 2, 3, 4]] * 2


def test_restored_position_applies_to_its_epoch_only():
    whole = passes(EpochSampler(range(50), 10, seed=1), [2, 3])
    sampler = EpochSampler(range(50), 10, seed=1)
    sampler.load_state_dict({"version": 2, "epoch": 2, "batches": 3})
    assert len(sampler) == 50  # Lightning itself counts the batches that were done
    assert sampler.generator.initial_seed() == EpochSampler(range(9), 1, seed=1)._seed_of(2)
    assert passes(sampler, [2, 3, 2]) == [whole[0][30:], whole[1], whole[0]]


@pytest.mark.parametrize("rows", [48, 50])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_every_batch_of_one_rank(rows, drop_last):
    ranks = 4
    single = passes(EpochSampler(range(rows), 8, seed=1), [3])[0]
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(range(rows), 2, seed=1, drop_last=drop_last)
        # what the constructor reads from the process group; one process cannot be in four groups
        sampler.rank, sampler.num_replicas = rank, ranks
        sampler.num_samples = rows // ranks if drop_last else -(-rows // ranks)
        sampler.total_size = sampler.num_samples * ranks
        shares.append(passes(sampler, [3])[0])
    assert len({len(share) for share in shares}) == 1
    dealt = [row for batch in zip(*shares, strict=True) for row in batch]
    if rows == 48 or drop_last:
        assert dealt == single[:48]  # no row twice
    else:
        assert dealt == single + single[:2]  # no row twice but the documented padding


def test_numpy_integers_are_accepted():
    assert list(EpochSampler(range(9), np.int64(2), np.int32(1))) == list(EpochSampler(range(9), 2, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": ()}, ValueError, "EpochSampler.dataset must hold at least one row, got none"),
        ({"batch_size": 0}, ValueError, "EpochSampler.batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "EpochSampler.batch_size must be an integer >= 1, got 2.0"),
        ({"seed": -1}, ValueError, "EpochSampler.seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        EpochSampler(**{"dataset": range(3), "batch_size": 1, **arguments})


def left(state):
    sampler = EpochSampler(range(10), 2, shuffle=False)
    sampler.load_state_dict(state)
    return list(sampler)


def test_unknown_entries_of_a_state_are_ignored_and_missing_ones_are_0():
    assert left({"version": 2, "epoch": 1, "batches": 3, "added_later": "x"}) == [6, 7, 8, 9]
    assert left({"version": 2, "epoch": 1}) == [*range(10)]


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (None, ValueError, "the state of EpochSampler must be a dict, got None"),
        ({"epoch": 1, "batches": 2}, ValueError, "written by lit_cosine 1.x, whose state of EpochSampler cannot be"),
        ({"version": 3, "epoch": 1}, ValueError, "has version 3 and this lit_cosine reads version 2"),
        ({"version": 2, "epoch": [1]}, TypeError, r"^epoch in the state of EpochSampler must .* got \[1\]$"),
        ({"version": 2, "batches": -1}, ValueError, "^batches in the state of EpochSampler must .* got -1$"),
    ],
)
def test_foreign_states_are_refused(state, error, message):
    with pytest.raises(error, match=message):
        left(state)


def check_order(rank, sampler, order):
    assert sampler.generator.initial_seed() == sampler._seed_of(2)
    assert list(sampler) == order


@pytest.mark.slow
def test_a_spawned_process_has_the_same_order():
    sampler = EpochSampler(range(50), 10, seed=1)
    sampler.set_epoch(2)
    torch.multiprocessing.spawn(check_order, (sampler, sampler.order(2).tolist()))
