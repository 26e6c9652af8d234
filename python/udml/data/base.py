"""What every data set provides: batches, and a description that they are checked against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._names import modality_names
from ..layers.noise import Noise

TASKS = ("classification", "segmentation")
IGNORED = 255
UNLABELLED = f"expected at least one pixel with a class, got {IGNORED}, no class, everywhere"


class DataError(Exception):
    """Data is missing or is not what it should be; the message names the file and what was expected."""


@dataclass
class Batch:
    """B samples of M modalities.

    Attributes:
        inputs: by modality, (B, ...); float32, or uint8 for images, which the noise op normalises.
        target: int64, the class (B,); for segmentation (B, H, W), with IGNORED (255) where there is no class.
        index: int64 (B,), the samples' positions in the whole data set, used as sample ids for the noise.
        present: bool (B, M), False where a modality is missing; None if all are present.
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
        """The rows given by indices or by a bool mask (B,)."""
        rows = torch.as_tensor(rows, device=self.target.device)
        return self._map(lambda x: x[rows if rows.numel() else rows.long()])

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device; pinned memory is copied asynchronously."""
        return self._map(lambda x: x.to(device, non_blocking=x.is_pinned()))

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory; DataLoader(pin_memory=True) calls this."""
        return self._map(lambda x: x.pin_memory())


@dataclass(frozen=True)
class DataSpec:
    """The description of a data set.

    Attributes:
        name: as in DATASETS, or the user's own.
        modalities: M names, 1 to 16, that `nn.ModuleDict` accepts: without dots.
        classes: K names.
        task: "classification" or "segmentation".
        noise: by modality, how a level sigma becomes noise on the raw input.
        max_sigma: the highest level that training draws.

    Raises:
        ValueError, TypeError: naming the attribute, what was given and what is expected.
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
        if not isinstance(self.classes, list | tuple) or not self.classes:
            raise TypeError(f"classes: expected a list of names, one a class, got {self.classes!r}")
        # As tuples: a list would compare unequal to the tuple of a model or a checkpoint.
        object.__setattr__(self, "modalities", modality_names("modalities", self.modalities))
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        if not isinstance(self.noise, Mapping) or set(self.noise) != set(self.modalities):
            got = ", ".join(self.noise) if isinstance(self.noise, Mapping) else type(self.noise).__name__
            raise ValueError(f"noise: expected the keys {', '.join(self.modalities)}, got {got}")
        for name, noise in self.noise.items():
            if not isinstance(noise, Noise):
                raise TypeError(f"noise[{name!r}]: expected a Noise, got {noise!r}")

    def check(self, batch: Batch, source: str) -> None:
        """Raises DataError, whose message begins with `source`, if a batch does not fit this data set."""

        def expect(condition: bool, expected: str, got: object) -> None:
            if not condition:
                raise DataError(f"{source}: expected {expected}, got {got}")

        expect(isinstance(batch, Batch), "a Batch", type(batch).__name__)
        expect(isinstance(batch.inputs, Mapping), "inputs by modality name", type(batch.inputs).__name__)
        names = ", ".join(self.modalities)
        expect(set(batch.inputs) == set(self.modalities), f"the modalities {names}", ", ".join(map(str, batch.inputs)))
        for name, x in {**batch.inputs, "target": batch.target, "index": batch.index}.items():
            expect(isinstance(x, Tensor), f"{name} as a tensor (MultimodalData.from_arrays takes arrays)", type(x))
            expect(x.dim() > 0, f"{name} with a dimension of samples", "one number")
        size = len(batch)
        if batch.present is not None:
            expected, shape = (size, len(self.modalities)), tuple(batch.present.shape)
            expect(shape == expected and batch.present.dtype == torch.bool, f"present {expected} of bool", shape)
        for m, name in enumerate(self.modalities):
            x = batch.inputs[name]
            expect(x.dtype in (torch.float32, torch.uint8), f"{name} in float32 or uint8", x.dtype)
            expect(len(x) == size, f"{size} samples of {name}, as many as targets", len(x))
            # Where a modality is missing, any value is allowed.
            x = x if batch.present is None else x[batch.present[:, m]]
            expect(bool(x.isfinite().all()), f"finite values of {name}", "NaN or infinity")
        dims = 1 if self.task == "classification" else 3
        expect(batch.target.dim() == dims, f"a target of {dims} dimensions", tuple(batch.target.shape))
        self.check_labels(batch.target, source)
        shape, dtype = tuple(batch.index.shape), batch.index.dtype
        expect(shape == (size,) and dtype == torch.int64, f"an index ({size},) of int64", f"{shape} of {dtype}")

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
