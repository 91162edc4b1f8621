"""A random number generator whose draws are the same on every machine and in every version of Python.

SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) on plain integers,
seeded through SHA-256. Left out: anything that must be hard to guess, and floating point.
"""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

MASK = 2**64 - 1
T = TypeVar("T")


class Draw:
    """A stream of draws, decided by its key alone.

    Args:
        key: names the stream, e.g. ``Draw("train", 7)``; streams of different keys have nothing to do with each other.
    """

    def __init__(self, *key: str | int):
        name = "\x1f".join(map(str, key))
        self.state = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")

    def bits(self) -> int:
        """64 random bits."""
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer in ``[0, n)``. Scaling instead of rejection: the bias is below n / 2**64."""
        return (self.bits() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """An integer in ``[low, high]``."""
        return low + ((self.bits() * (high - low + 1)) >> 64)

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 draws."""
        return self.below(100) < percent

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[(self.bits() * len(options)) >> 64]

    def two(self, options: Sequence[T]) -> tuple[T, T]:
        """Two different options, in random order."""
        first = self.below(len(options))
        second = self.below(len(options) - 1)
        return options[first], options[second + (second >= first)]
