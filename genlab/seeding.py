"""Derive seeds from several integers: each random draw depends on its place in a run."""

from __future__ import annotations

MASK_64 = 2**64 - 1


def derive_seed(*parts: int) -> int:
    """Return 63 well-mixed bits of some integers.

    The finalizer of SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195),
    chained over the parts.
    """
    h = 0x9E3779B97F4A7C15
    for part in parts:
        h = ((h ^ (part & MASK_64)) + 0x9E3779B97F4A7C15) & MASK_64
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK_64
        h ^= h >> 31
    return h >> 1
