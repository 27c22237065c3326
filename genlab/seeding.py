"""Seeds made of several integers: what makes every random draw a function of where it stands in a run."""

from __future__ import annotations

BITS = 2**64 - 1


def mix(*parts: int) -> int:
    """Return 63 well-mixed bits of some integers (the finaliser of SplitMix64, Steele et al. 2014, chained)."""
    h = 0x9E3779B97F4A7C15
    for part in parts:
        h = ((h ^ (part & BITS)) + 0x9E3779B97F4A7C15) & BITS
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & BITS
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & BITS
        h ^= h >> 31
    return h >> 1
