"""What every data set hands over: batches, a description, three splits and encoders that suit it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..layers.noise import Noise

TASKS = ("classification", "segmentation")
IGNORED = 255


class DataError(Exception):
    """Data is missing or is not what it should be; the message names the file and what was expected."""


@dataclass
class Batch:
    """B samples of M modalities.

    Attributes:
        inputs: by modality, (B, ...); float32, or uint8 for images, which the noise op normalises.
        target: int64, the class (B,); for segmentation (B, H, W), where IGNORED (255) has no class.
        index: int64 (B,), the samples' places in the whole data set: their identities for the noise.
        present: bool (B, M), False where a modality is missing; None where all are there.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    index: Tensor
    present: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        inputs = {name: function(x) for name, x in self.inputs.items()}
        present = None if self.present is None else function(self.present)
        return Batch(inputs, function(self.target), function(self.index), present)

    def select(self, rows: Tensor | Sequence[int]) -> "Batch":
        """The rows of indices or of a bool mask (B,)."""
        rows = torch.as_tensor(rows, device=self.target.device)
        return self._map(lambda x: x[rows if rows.numel() else rows.long()])

    def to(self, device: torch.device | str) -> "Batch":
        """On another device; pinned memory is copied without waiting."""
        return self._map(lambda x: x.to(device, non_blocking=x.is_pinned()))

    def pin_memory(self) -> "Batch":
        """In pinned memory, as DataLoader(pin_memory=True) asks."""
        return self._map(lambda x: x.pin_memory())


@dataclass(frozen=True)
class DataSpec:
    """What a data set is.

    Attributes:
        name: as in DATASETS.
        modalities: M names, 1 to 16.
        classes: K names.
        task: "classification" or "segmentation".
        noise: by modality, how a level sigma becomes noise on its raw input.
        max_sigma: the highest level that training draws.

    Raises:
        ValueError: a task that is none of the two, modalities that noise does not name one by one.
    """

    name: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    task: str
    noise: dict[str, Noise]
    max_sigma: float = 12.0

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {self.task!r}")
        if not 1 <= len(self.modalities) <= 16:
            raise ValueError(f"modalities: expected 1 to 16 names, got {len(self.modalities)}")
        if set(self.noise) != set(self.modalities):
            raise ValueError(f"noise: expected the keys {', '.join(self.modalities)}, got {', '.join(self.noise)}")

    def check(self, batch: Batch, source: str) -> None:
        """Raises DataError, which begins with `source`, where a batch is not of this data set."""

        def expect(condition: bool, expected: str, got: object) -> None:
            if not condition:
                raise DataError(f"{source}: expected {expected}, got {got}")

        names, size = set(batch.inputs), len(batch)
        expect(names == set(self.modalities), f"the modalities {', '.join(self.modalities)}", ", ".join(batch.inputs))
        for name, x in batch.inputs.items():
            expect(x.dtype in (torch.float32, torch.uint8), f"{name} in float32 or uint8", x.dtype)
            expect(len(x) == size, f"{size} samples of {name}, as many as targets", len(x))
            expect(bool(x.isfinite().all()), f"finite values of {name}", "NaN or infinity")
        dims = 1 if self.task == "classification" else 3
        expect(batch.target.dim() == dims, f"a target of {dims} dimensions", tuple(batch.target.shape))
        self.check_labels(batch.target, source)
        shape, dtype = tuple(batch.index.shape), batch.index.dtype
        expect(shape == (size,) and dtype == torch.int64, f"an index ({size},) of int64", f"{shape} of {dtype}")
        if batch.present is not None:
            expected, shape = (size, len(self.modalities)), tuple(batch.present.shape)
            expect(shape == expected and batch.present.dtype == torch.bool, f"present {expected} of bool", shape)

    def check_labels(self, target: Tensor, source: str) -> None:
        """Raises DataError for labels that are not int64 in [0, K), or IGNORED in segmentation."""
        if target.dtype != torch.int64:
            raise DataError(f"{source}: expected labels of int64, got {target.dtype}")
        wrong = (target < 0) | (target >= len(self.classes))
        if self.task == "segmentation":
            wrong &= target != IGNORED
        if bool(wrong.any()):
            got = target[wrong].unique()[:5].tolist()
            raise DataError(f"{source}: expected labels in [0, {len(self.classes)}), got {', '.join(map(str, got))}")


class TensorSet(Dataset):
    """A split that is held in memory: `batch` is all of it."""

    def __init__(self, batch: Batch):
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, row: int) -> Batch:
        return self.batch.select([range(len(self))[row]])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        return self.batch.select(rows)


class FolderSet(Dataset):
    """A split that is read from files, sample by sample.

    Args:
        items: what `read` takes, a sample each.
        index: the samples' places in the whole data set.
        read: gives a sample's inputs by modality and its target, none with a batch dimension.
        targets: int64 (N,) where the labels are known without reading; None otherwise.
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


@dataclass
class MultimodalData:
    """A data set: what `load_data` returns.

    Attributes:
        spec: its description.
        train, validation, test: data sets with len(), `[row]`, a Batch of one, and `__getitems__(rows)`, a Batch,
            which a DataLoader with collate_fn=identity fetches whole.
        make_encoders: gives the encoders of a width.

    Raises:
        DataError: an empty split, labels outside the classes, or samples that are not as `spec` says. Of splits
            that are read from files, the first sample is read, and every label that is known without reading.
    """

    spec: DataSpec
    train: Dataset
    validation: Dataset
    test: Dataset
    make_encoders: Callable[[int], dict[str, nn.Module]]

    def __post_init__(self):
        for split, part in self.splits.items():
            source = f"{self.spec.name}, {split}"
            if not len(part):
                raise DataError(f"{source}: expected at least one sample, got none")
            if getattr(part, "targets", None) is not None:
                self.spec.check_labels(part.targets, source)
            self.spec.check(part.batch if isinstance(part, TensorSet) else part[0], source)

    @property
    def splits(self) -> dict[str, Dataset]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def encoders(self, width: int) -> dict[str, nn.Module]:
        """Small encoders by modality, each from its (noisy, normalised) input to (B, width, ...)."""
        return self.make_encoders(width)
