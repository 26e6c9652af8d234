"""Splits in memory and on disk; a data set's three splits, with encoders that suit them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from ..layers.noise import Noise
from .arrays import array_encoders, array_noise, array_parts, class_names, to_batch, unwrapped
from .base import IGNORED, UNLABELLED, Batch, DataError, DataSpec


class Split(Protocol):
    """Samples as Batches: one, or several at once as a DataLoader fetches them."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Batch: ...

    def __getitems__(self, rows: Sequence[int], /) -> Batch: ...


class TensorSet(Dataset):
    """A split in memory: `batch` holds all of it."""

    def __init__(self, batch: Batch):
        if not isinstance(batch, Batch):
            raise TypeError(f"batch: expected a Batch, got {type(batch).__name__}")
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, row: int) -> Batch:
        return self.batch.select([range(len(self))[row]])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        return self.batch.select(rows)


class FolderSet(Dataset):
    """A split read from files, sample by sample.

    Args:
        items: one argument of `read` per sample.
        index: the samples' positions in the whole data set.
        read: returns a sample's inputs by modality and its target, without batch dimensions.
        targets: int64 (N,) if the labels are known without reading; else None.
    """

    def __init__(
        self,
        items: Sequence,
        index: Sequence[int],
        read: Callable[..., tuple[dict[str, Tensor], Tensor]],
        targets: Sequence[int] | None = None,
    ):
        self.items, self.read = list(items), read
        self.index = torch.tensor(index, dtype=torch.int64, device="cpu")
        self.targets = None if targets is None else torch.tensor(targets, dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__([range(len(self))[row]])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        inputs, targets = zip(*(self.read(self.items[row]) for row in rows), strict=True)
        stacked = {name: torch.stack([sample[name] for sample in inputs]) for name in inputs[0]}
        return Batch(stacked, torch.stack(targets), self.index[list(rows)])


def as_split(part: Split | Dataset, modalities: Sequence[str], name: str, start: int = 0) -> Split:
    """A split unchanged, or a `TensorDataset` (or a `Subset` of one) as a `TensorSet`.

    Args:
        part: a data set of Batches; or of M tensors, in the order of the modalities, and the target.
        modalities: M names.
        name: the name in the errors.
        start: the index of the first sample of a TensorDataset.

    Raises:
        TypeError, ValueError: for any other data set.
    """
    part = unwrapped(part)
    if isinstance(part, TensorDataset):
        return TensorSet(to_batch(part, modalities, name, start))
    if not hasattr(part, "__getitem__") or not hasattr(part, "__len__"):
        got = type(part).__name__
        raise TypeError(f"{name}: expected a data set of Batches or a TensorDataset, got {got}")
    return cast(Split, part)


@dataclass
class MultimodalData:
    """A data set: what `load_data` returns, or the user's own; `from_arrays` builds one from arrays.

    Attributes:
        spec: its description.
        train, validation, test: data sets with len(), `[row]`, a Batch of one, and `__getitems__(rows)`, a Batch,
            which a DataLoader with collate_fn=identity fetches whole. A `TensorDataset` of the modalities' tensors (in
            their order) and the target is converted to a `TensorSet`.
        make_encoders: returns the encoders for a width; None if the model or its encoders come from elsewhere.

    Raises:
        TypeError: for a split that is not such a data set.
        DataError: for an empty split, labels outside the classes, or samples that do not fit `spec`. In splits read
            from files, the first sample and every label that is known without reading are checked.
    """

    spec: DataSpec
    train: Split
    validation: Split
    test: Split
    make_encoders: Callable[[int], dict[str, nn.Module]] | None = None

    def __post_init__(self):
        if self.make_encoders is not None and not callable(self.make_encoders):
            raise TypeError(f"make_encoders: expected a function of the width, got {type(self.make_encoders).__name__}")
        start = 0
        for split, part in self.splits.items():
            source = f"{self.spec.name}, {split}"
            part = as_split(part, self.spec.modalities, source, start)
            setattr(self, split, part)
            start += len(part)
            if not len(part):
                raise DataError(f"{source}: expected at least one sample, got none")
            if getattr(part, "targets", None) is not None:
                self.spec.check_labels(part.targets, source)
            batch = part.batch if isinstance(part, TensorSet) else part[0]
            self.spec.check(batch, source)
            whole = isinstance(part, TensorSet) and self.spec.task == "segmentation"
            if whole and bool((batch.target == IGNORED).all()):
                raise DataError(f"{source}: {UNLABELLED}")

    @classmethod
    def from_arrays(
        cls,
        train: Any,
        validation: Any = 0.2,
        test: Any = 0.2,
        *,
        modalities: Sequence[str] | None = None,
        classes: int | Sequence[str] | None = None,
        name: str = "own",
        task: str = "classification",
        noise: Mapping[str, Noise | float] | Noise | float | None = None,
        max_sigma: float = 12.0,
        encoders: Callable[[int], dict[str, nn.Module]] | None = None,
        seed: int = 0,
    ) -> "MultimodalData":
        """A data set from numpy arrays, tensors or lists, all in memory.

        Args:
            train: (inputs, target) or (inputs, target, present), a `TensorDataset` of the inputs and the target, or a
                `Batch`. Inputs are arrays (N, ...) by modality name, or as many as `modalities` names, in their order:
                uint8, or any numbers, which become float32. The target has N integers; in segmentation (N, H, W),
                255 where a pixel has no class. present is bool (N, M), False where a modality is missing.
            validation, test: likewise; or the fraction to take of the training samples that the other split leaves,
                stratified by class. The test samples are taken first and do not depend on `seed`.
            modalities: the names; None uses the mapping's.
            classes: the names, or how many; None for as many as the labels show.
            name: of the data set, in messages and files.
            task: "classification" or "segmentation".
            noise: how a level becomes noise, for all modalities or by name; a number is the standard deviation at
                sigma = 1. None: a quarter of the training values'; for uint8 images sigma^2, clamped to 0 to 255,
                before they are normalised by the training values' mean and deviation.
            max_sigma: the highest level that training draws.
            encoders: returns the encoders for a width; None for small ones that suit the shapes: (F,) features,
                (C, T) signals, (C, H, W) images, (C, T, H, W) frames.
            seed: chooses the validation samples if they are a fraction.

        Raises:
            TypeError, ValueError: naming the argument, what was given and what is expected.
            DataError: as `MultimodalData`.
        """
        names, batches = array_parts(train, validation, test, modalities, task, seed)
        labels, noises = class_names(classes, batches, task), array_noise(noise, batches[0])
        spec = DataSpec(name, names, labels, task, noises, max_sigma)
        made = array_encoders(batches[0], task) if encoders is None else encoders
        train, validation, test = map(TensorSet, batches)
        return cls(spec, train, validation, test, made)

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """Small encoders by modality, each from its (noisy, normalised) input to (B, width, ...).

        Raises:
            ValueError: if the data set has none.
        """
        if self.make_encoders is None:
            raise ValueError(f"encoders: expected them, or a model, as {self.spec.name} has none of its own, got None")
        return self.make_encoders(width)
