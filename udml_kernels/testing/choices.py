"""The random choices that make a case, recorded so that a failing case can be replayed with simpler ones."""

import bisect
import random
from collections.abc import Callable, Sequence
from typing import Any

# Sizes around the widths of vectors, tiles and blocks, in increasing order.
SIZES: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129)
SIZES += (255, 256, 257, 511, 513, 1023, 1024, 1025, 4096)
# Number of elements of a tensor that is enough for several threads.
LARGE = 60_000


class Choices:
    """Random integers from a key, or those of a recorded tape; after its end 0, the simplest choice."""

    def __init__(self, key: str, tape: Sequence[int] | None = None, elements: int = 1000):
        self._random, self._given = random.Random(key), tape
        # Approximate number of elements of the largest tensor.
        self.elements = elements
        self.tape: list[int] = []

    def below(self, count: int) -> int:
        if self._given is None:
            value = self._random.randrange(count)
        else:
            at = len(self.tape)
            value = min(self._given[at], count - 1) if at < len(self._given) else 0
        self.tape.append(value)
        return value

    def pick(self, *options: Any) -> Any:
        """One of the options, of which the first is the simplest."""
        return options[self.below(len(options))]

    def one_in(self, count: int) -> bool:
        return self.below(count) == count - 1

    def number(self, low: float, high: float) -> float:
        """A multiple of 1/64 of the interval, counted from the end that is nearer to 0."""
        part = self.below(65) / 64
        return low + part * (high - low) if abs(low) <= abs(high) else high - part * (high - low)

    def size(self, limit: int = SIZES[-1]) -> int:
        return SIZES[self.below(bisect.bisect_right(SIZES, max(limit, 1)))]

    def budget(self) -> int:
        """Number of elements of a tensor: few, as small sizes find most faults; sometimes `LARGE`."""
        return LARGE if self.one_in(250) else self.elements

    def batch(self) -> int:
        return 0 if self.one_in(40) else self.size(33)

    def modalities(self) -> int:
        return self.pick(1, 2, 2, 3, 3, 4, 5, 8, 15, 16)

    def spatial(self, budget: int, ranks: int = 4) -> tuple[int, ...]:
        sizes: list[int] = []
        for _ in range(self.below(ranks)):
            sizes.append(0 if self.one_in(60) else self.size(min(budget, 65)))
            budget //= max(sizes[-1], 1)
        return tuple(sizes)

    def shape(self, ranks: int = 4) -> tuple[int, ...]:
        """A shape (B, C, ...)."""
        budget = self.budget()
        batch = self.batch()
        channels = 0 if self.one_in(60) else self.size(budget // max(batch, 1))
        return (batch, channels, *self.spatial(budget // max(batch * channels, 1), ranks))

    def powers(self, reach: float) -> tuple[float, float]:
        """An interval of decimal exponents."""
        low, high = sorted((self.number(-reach, reach), self.number(-reach, reach)))
        return low, high


def smallest(tape: list[int], fails: Callable[[list[int]], bool], attempts: int = 400) -> list[int]:
    """A tape of smaller numbers for which `fails` still holds: set spans to 0, then lower single numbers."""
    used, best = 0, tape
    spans = [(at, 8) for at in range(0, len(tape), 8)] + [(at, 1) for at in range(len(tape))]
    improved = True
    while improved and used < attempts:
        improved = False
        for at, length in spans:
            for candidate in _simpler(best, at, length):
                used += 1
                if used <= attempts and fails(candidate):
                    best, improved = candidate, True
                    break
    return best


def _simpler(tape: list[int], at: int, length: int):
    """Copies of the tape with lower numbers in one place, the lowest first."""
    values = tape[at : at + length]
    lower = [0] if length > 1 else dict.fromkeys((0, *(value // 2 for value in values), *(v - 1 for v in values)))
    if any(values):
        for number in lower:
            if 0 <= number < max(values):
                yield [*tape[:at], *[number] * len(values), *tape[at + length :]]
