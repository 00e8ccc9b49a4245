import pytest
import torch

from damo_torchrec.distributed.mixing import mix, rank_of, unmix

_SMALLEST, _LARGEST = -(2**63), 2**63 - 1


def _finalised(z: int) -> int:
    """SplitMix64's finaliser, in Python's own integers."""
    z &= 2**64 - 1
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def _random_ids(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(_SMALLEST, _LARGEST, (n,), generator=generator)
    return torch.cat([ids, torch.tensor([0, 1, -1, _SMALLEST, _LARGEST])])


def test_golden_values() -> None:
    # The first output of SplitMix64 with seed 0, of its published vectors, is the finaliser of its increment.
    increment = 0x9E3779B97F4A7C15 - 2**64
    assert int(mix(torch.tensor([increment]))[0]) == 0xE220A8397B1DCDAF - 2**64
    ids = torch.tensor([0, 1, 2, -1, 2**40, _SMALLEST, _LARGEST])
    assert rank_of(ids, 2).tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert rank_of(ids, 3).tolist() == [0, 1, 1, 0, 0, 0, 1]
    assert rank_of(ids, 4).tolist() == [0, 1, 2, 3, 0, 2, 1]
    assert rank_of(ids, 7).tolist() == [0, 6, 1, 0, 1, 0, 3]
    assert rank_of(ids, 256).tolist() == [0, 229, 138, 123, 248, 138, 189]


def test_it_is_the_finaliser_of_all_64_bits() -> None:
    ids = _random_ids(2000)
    mixed = [value % 2**64 for value in mix(ids).tolist()]
    assert mixed == [_finalised(value) for value in ids.tolist()]
    for ranks in (1, 2, 3, 5, 64, 255, 1000):
        assert rank_of(ids, ranks).tolist() == [value % ranks for value in mixed]


def test_unmix_undoes_it() -> None:
    ids = _random_ids(2000)
    assert torch.equal(unmix(mix(ids)), ids)
    assert torch.equal(mix(unmix(ids)), ids)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 256, 1000, 2**32, 2**40 + 2])
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_strided_ids_balance(stride: int, ranks: int) -> None:
    n = 20_000
    counts = torch.bincount(rank_of(torch.arange(n) * stride, ranks), minlength=ranks)
    assert counts.max() < 1.1 * n / ranks
    assert counts.min() > 0.9 * n / ranks


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"ids must be int64, got torch\.int32"):
        rank_of(torch.tensor([1], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match="world_size must be positive, got 0"):
        rank_of(torch.tensor([1]), 0)
