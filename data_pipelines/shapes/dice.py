"""Seeded random choices for the embedded data set.

Only the raw words of PCG64 are used, which numpy guarantees to be the same across releases and platforms, unlike the results of
`Generator`'s methods. Integer arithmetic and exact IEEE operations turn them into choices.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

T = TypeVar("T")

_BUFFER = 128  # words fetched at a time
_UNIT = 2.0**-53


class Dice:
    """A stream of choices, the same for the same `seed` (non-negative integers below 2**32)."""

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        self._words: list[int] = []

    def _word(self) -> int:
        if not self._words:
            self._words = self._bits.random_raw(_BUFFER).tolist()
        return self._words.pop()

    def below(self, n: int) -> int:
        """An integer in [0, n). (The bias of the remainder is under n / 2**64.)"""
        return self._word() % n

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + self._word() % (high - low + 1)

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * ((self._word() >> 11) * _UNIT)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return (self._word() >> 11) * _UNIT < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return items[self._word() % len(items)]

    def weighted(self, weights: dict[T, int]) -> T:
        """One of the keys, in proportion to its whole-number weight."""
        left = self.below(sum(weights.values()))
        for item, weight in weights.items():
            left -= weight
            if left < 0:
                return item
        raise AssertionError("unreachable: the weights were summed above")

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result

    def bytes(self, count: int) -> UInt8[np.ndarray, " count"]:
        """`count` random bytes."""
        words = self._bits.random_raw((count + 7) // 8)
        return words.astype("<u8", copy=False).view(np.uint8)[:count]
