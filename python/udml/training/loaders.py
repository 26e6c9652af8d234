"""Which samples a step takes, and how they reach it."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.sets import Split
from .randomness import epoch_order


class EpochBatches(Sampler[list[int]]):
    """The rows of each step of an epoch; a last smaller batch is left out.

    Every process takes its consecutive share of each batch, so together they take the steps of a single one.

    Args:
        size: samples of the data set.
        batch_size: samples a step, over all processes.
        seed: the run's.
        epoch: gives the current epoch, when an iterator is made.
        rank: this process, of
        world: processes.

    Raises:
        ValueError: when the processes cannot share a batch evenly.
    """

    def __init__(
        self, size: int, batch_size: int, *, seed: int, epoch: Callable[[], int], rank: int = 0, world: int = 1
    ):
        self.size, self.batch_size = size, min(size, batch_size)
        if self.batch_size % world:
            raise ValueError(f"batch_size: expected a multiple of the {world} processes, got {self.batch_size}")
        self.seed, self.epoch, self.rank, self.share = seed, epoch, rank, self.batch_size // world

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.seed, self.epoch(), self.size).tolist()
        first = self.rank * self.share
        for start in range(first, first + len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.share]


class Stripes(Sampler[list[int]]):
    """All rows of a data set in batches, in order; of several processes each takes every world-th row."""

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world: int = 1):
        self.rows, self.batch_size = range(rank, size, world), batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield list(self.rows[start : start + self.batch_size])


def make_loader(dataset: Split, batches: Sampler[list[int]], workers: int = 0) -> DataLoader:
    """A DataLoader over batches that the data set fetches whole (`__getitems__`)."""
    return DataLoader(
        cast(Dataset, dataset),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and workers > 0,
        # A generator of its own: the workers' seed must not be drawn from the one that a step may use.
        generator=torch.Generator(),
    )


def _as_it_is(batch):
    return batch
