import numpy as np
import pytest
import torch

from lit_cosine.sampler import EpochSampler


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
    # by mixing: were it seed + epoch, this would be `second`
    assert passes(EpochSampler(range(50), 10, seed=2), [0]) != [second]
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert passes(EpochSampler(range(50), 10, seed=1), [1]) == [second]
    assert torch.equal(before, torch.get_rng_state())


def test_without_lightning_every_whole_pass_is_the_next_epoch():
    sampler = EpochSampler(range(50), 10, seed=1)
    expected = passes(EpochSampler(range(50), 10, seed=1), [0, 1, 2])
    assert [list(sampler), list(sampler)] == expected[:2]
    next(iter(sampler))  # a pass that is given up is none
    assert list(sampler) == expected[2]


def test_unshuffled_is_in_order():
    assert passes(EpochSampler(range(5), 2, shuffle=False), [0, 3]) == [[0, 1, 2, 3, 4]] * 2


def test_a_restored_position_holds_for_its_epoch_alone():
    whole = passes(EpochSampler(range(50), 10, seed=1), [2, 3])
    sampler = EpochSampler(range(50), 10, seed=1)
    sampler.load_state_dict({"epoch": 2, "batches": 3})
    assert len(sampler) == 50  # Lightning counts the batches that were done itself
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
        # what the constructor asks an initialized process group; four groups in one process there cannot be
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


def test_numpys_integers_are_integers():
    assert list(EpochSampler(range(9), np.int64(2), np.int32(1))) == list(EpochSampler(range(9), 2, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": ()}, "EpochSampler.dataset must hold at least one row, got none"),
        ({"batch_size": 0}, "EpochSampler.batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, "EpochSampler.batch_size must be an integer >= 1, got 2.0"),
        ({"seed": -1}, "EpochSampler.seed must be an integer >= 0, got -1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(**{"dataset": range(3), "batch_size": 1, **arguments})


@pytest.mark.parametrize("state", [{}, {"epoch": 1}, None, {"epoch": 1, "batches": 2, "more": 3}])
def test_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="the state must be an EpochSampler's, with epoch and batches"):
        EpochSampler(range(3), 1).load_state_dict(state)
