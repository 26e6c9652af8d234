"""The 32-bit Philox outputs of the reference, once per case: they are most of the reference's cost in a small case.

The formulas stay the reference's own. The difference is that NumPy executes them, whose calls take a third of the time
on a few hundred integers, and that results are reused.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from udml_kernels.reference import random as plain

_PHILOX, _WORDS = plain.philox, plain.words
_known: dict[tuple, Tensor] = {}


def _philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    if any(word.device.type != "cpu" for word in (*counter, *key)):
        return _PHILOX(counter, key)
    arrays: tuple[np.ndarray, ...] = tuple(word.numpy() for word in counter)
    # Python's integers would not wrap, but the key's never get large enough.
    return tuple(map(torch.from_numpy, _PHILOX(arrays, tuple(word.item() for word in key))))


def _words(shape, seed: Tensor, stream: int, sample_ids: Tensor | None) -> Tensor:
    ids = None if sample_ids is None else tuple(sample_ids.tolist())
    key = (tuple(shape), seed.item(), stream, ids, seed.device)
    if key not in _known:
        _known[key] = _WORDS(shape, seed, stream, sample_ids)
    return _known[key]


@contextlib.contextmanager
def known_words() -> Iterator[None]:
    """Inside the block, the same words are not computed twice."""
    plain.philox, plain.words = _philox, _words
    try:
        yield
    finally:
        plain.philox, plain.words = _PHILOX, _WORDS
        _known.clear()
