"""Which rank an id's row lives on: a bijective mix of its 64 bits, modulo the number of ranks.

The mix is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014), so
that ids with a stride spread as evenly as random ones. It is part of the format of stores of several ranks: it never
changes.
"""

import torch

# The finaliser: z ^= z >>> 30; z *= M1; z ^= z >>> 27; z *= M2; z ^= z >>> 31. All modulo 2^64, as int64 wraps.
_M1, _M2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_INVERSE_OF_M1, _INVERSE_OF_M2 = -0x6921E4E8C0EE6F77, 0x319642B2D24D8EC3


def mix(ids: torch.Tensor) -> torch.Tensor:
    """The mixed ids: int64 of the same shape, on the same device. `unmix` undoes it.

    Args:
        ids: int64.
    """
    z = _xor_shifted(ids, 30) * _M1
    return _xor_shifted(_xor_shifted(z, 27) * _M2, 31)


def unmix(mixed: torch.Tensor) -> torch.Tensor:
    """The ids that `mix` has made these of."""
    z = (mixed ^ _shifted(mixed, 31) ^ _shifted(mixed, 62)) * _INVERSE_OF_M2
    z = (z ^ _shifted(z, 27) ^ _shifted(z, 54)) * _INVERSE_OF_M1
    return z ^ _shifted(z, 30) ^ _shifted(z, 60)


def rank_of(ids: torch.Tensor, world_size: int) -> torch.Tensor:
    """The rank on which each id's row lives: int64 in 0..world_size − 1, of the same shape.

    Args:
        ids: int64.
        world_size: the number of ranks.

    Raises:
        TypeError: ids are not int64.
        ValueError: the world size is not positive.
    """
    if ids.dtype != torch.int64:
        raise TypeError(f"ids must be int64, got {ids.dtype}")
    if world_size < 1:
        raise ValueError(f"world_size must be positive, got {world_size}")
    mixed = mix(ids)
    # Of the unsigned number: int64 has no such remainder, but its upper 63 bits have.
    return (_shifted(mixed, 1) % world_size * 2 + (mixed & 1)) % world_size


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """To the right, with zeros from the left."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _xor_shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    return z ^ _shifted(z, bits)
