"""Which samples a step uses, and how they are loaded."""

from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ..data.sets import Split
from .randomness import epoch_order


class EpochBatches(Sampler[list[int]]):
    """The rows of each step of an epoch; a smaller last batch is left out.

    Every process takes its consecutive part of each batch, so together they make the batches of a single process;
    DistributedSampler would form other batches.

    Args:
        size: number of samples in the data set.
        batch_size: samples per step, over all processes.
        seed: the run's seed.
        epoch: returns the current epoch; called when an iterator is made.
        rank: the number of this process.
        world: the number of processes.

    Raises:
        ValueError: if the processes cannot share a batch evenly.
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


def stripes(size: int, batch_size: int, *, rank: int = 0, world: int = 1) -> BatchSampler:
    """All rows of a data set in batches, in order; with several processes, each takes every world-th row."""
    return BatchSampler(range(rank, size, world), batch_size, drop_last=False)


def make_loader(dataset: Split, batches: Sampler[list[int]], workers: int = 0) -> DataLoader:
    """A DataLoader over batches that the data set fetches as a whole (`__getitems__`)."""
    return DataLoader(
        cast(Dataset, dataset),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and workers > 0,
        # A separate generator: the workers' seed must not be drawn from the one that a step may use.
        generator=torch.Generator(),
    )


def _as_it_is(batch):
    return batch
