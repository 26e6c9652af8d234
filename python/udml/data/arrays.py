"""The user's own arrays as batches, with noise and encoders that suit their shapes."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from udml_kernels.streams import Seed

from .._names import modality_names
from ..encoders import encoder_for
from ..layers.noise import Noise
from .base import IGNORED, Batch
from .splits import hold_out, hold_out_per_class

# At sigma = 4 noise and signal are equally strong.
_SIGMA_UNIT = 0.25
_PART = "(inputs, target), (inputs, target, present), a TensorDataset or a Batch"


def unwrapped(part: Any) -> Any:
    """A `Subset` of a `TensorDataset` (as `random_split` returns) as a TensorDataset; anything else unchanged."""
    inner: Dataset | Any = part
    rows = None
    while isinstance(inner, Subset):
        rows = list(inner.indices) if rows is None else [inner.indices[row] for row in rows]
        inner = inner.dataset
    if rows is None or not isinstance(inner, TensorDataset):
        return part
    return TensorDataset(*(x[rows] for x in inner.tensors))


def array_parts(
    train: Any, validation: Any, test: Any, modalities: Sequence[str] | None, task: str, seed: int
) -> tuple[tuple[str, ...], list[Batch]]:
    """The modalities' names and the batches of training, validation and test; arguments as `from_arrays` takes them.

    The samples are numbered consecutively through the given parts.
    """
    train, validation, test = (unwrapped(part) for part in (train, validation, test))
    if not _is_part(train):
        raise TypeError(f"train: expected {_PART}, got {_described(train)}")
    names = _names(train, modalities)
    batches, start = {}, 0
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if not isinstance(part, Real):
            batches[name] = to_batch(part, names, name, start)
            start += len(batches[name])
    for name, fraction, by in (("test", test, Seed.COMMON), ("validation", validation, seed)):
        if name not in batches:
            held = _hold_out(batches["train"], fraction, by, name, task)
            batches[name], batches["train"] = batches["train"].select(held), batches["train"].select(~held)
    return names, [batches[name] for name in ("train", "validation", "test")]


def class_names(classes: int | Sequence[str] | None, batches: Sequence[Batch], task: str) -> tuple[str, ...]:
    """The names; for K classes (None: as many as the labels show) the numbers from 0."""
    if classes is None:
        labels = torch.cat([batch.target.flatten() for batch in batches])
        labels = labels if task == "classification" else labels[labels != IGNORED]
        classes = int(labels.max()) + 1 if len(labels) else 1
    return tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)


def array_noise(noise: Any, batch: Batch) -> dict[str, Noise]:
    """The noise of each modality: as given, for all or by name (a number is a `unit`), else suited to the values.

    By default, at sigma = 1 its standard deviation is a quarter of that of the training values. For uint8 images it is
    sigma^2 on 0 to 255, clamped to that range; then the training values' mean and deviation normalise the images.
    """
    given = noise if isinstance(noise, Mapping) else {} if noise is None else dict.fromkeys(batch.inputs, noise)
    unknown = [name for name in given if name not in batch.inputs]
    if unknown:
        raise ValueError(f"noise: expected some of {', '.join(batch.inputs)}, got {', '.join(map(str, unknown))}")
    found = {}
    for m, (name, x) in enumerate(batch.inputs.items()):
        value = given.get(name)
        if value is None:
            found[name] = _suitable(x if batch.present is None else x[batch.present[:, m]])
        else:
            found[name] = value if isinstance(value, Noise) else Noise(value)
    return found


def array_encoders(batch: Batch, task: str) -> Callable[[int], dict[str, nn.Module]]:
    """A function from a width to the encoders, each chosen by its input's shape."""
    shapes = {name: tuple(x.shape[1:]) for name, x in batch.inputs.items()}
    return lambda width: {name: encoder_for(shape, width, task) for name, shape in shapes.items()}


def _is_part(part: Any) -> bool:
    return isinstance(part, Batch | TensorDataset) or (isinstance(part, list | tuple) and len(part) in (2, 3))


def _names(train: Any, modalities: Sequence[str] | None) -> tuple[str, ...]:
    if modalities is None:
        inputs = train.inputs if isinstance(train, Batch) else None if isinstance(train, TensorDataset) else train[0]
        if not isinstance(inputs, Mapping):
            raise ValueError("modalities: expected the names of the inputs, which train does not tell, got None")
        modalities = list(inputs)
    return modality_names("modalities", modalities)


def to_batch(part: Any, names: Sequence[str], where: str, start: int) -> Batch:
    """One part of `from_arrays` as a batch whose samples are numbered from `start`; errors begin with `where`."""
    if not _is_part(part):
        raise TypeError(f"{where}: expected {_PART}, got {_described(part)}")
    inputs: Any
    if isinstance(part, Batch):
        inputs, target, present = part.inputs, part.target, part.present
    elif isinstance(part, TensorDataset):
        (*inputs, target), present = part.tensors, None
    else:
        inputs, target, present = (*part, None)[:3]
    if isinstance(inputs, list | tuple) and len(inputs) == len(names):
        inputs = dict(zip(names, inputs, strict=True))
    if not isinstance(inputs, Mapping) or set(inputs) != set(names):
        got = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else _described(inputs)
        raise ValueError(f"{where}: expected inputs {', '.join(names)}, got {got}")
    tensors = {name: _floats(inputs[name], f"{where}[{name!r}]") for name in names}
    labels = _integers(target, where)
    for name, x in tensors.items():
        if len(x) != len(labels):
            raise ValueError(f"{where}[{name!r}]: expected {len(labels)} samples, one a label, got {len(x)}")
    here = None if present is None else _tensor(present, f"{where}, present", "b")
    if here is not None and tuple(here.shape) != (len(labels), len(names)):
        raise ValueError(f"{where}, present: expected shape {len(labels), len(names)}, got {tuple(here.shape)}")
    return Batch(tensors, labels, torch.arange(start, start + len(labels), device="cpu"), here)


def _tensor(values: Any, where: str, kinds: str) -> Tensor:
    """The values as a CPU tensor, of a numpy kind in `kinds`; memory is shared where possible."""
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{where}: expected an array, got {_described(values)}: {error}") from error
    if array.dtype.kind not in kinds or array.ndim == 0:
        what = {"b": "bools", "iub": "integers"}.get(kinds, "numbers")
        raise TypeError(f"{where}: expected an array of {what}, a row a sample, got {_described(array)}")
    native = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W"]))


def _floats(values: Any, where: str) -> Tensor:
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16:
        values = values.float()
    x = _tensor(values, where, "fiub")
    return x if x.dtype == torch.uint8 else x.float()


def _integers(values: Any, where: str) -> Tensor:
    return _tensor(values, f"{where}, target", "iub").long()


def _described(values: Any) -> str:
    if isinstance(values, np.ndarray):
        return f"{values.dtype} of shape {values.shape}"
    return f"{len(values)} of them" if isinstance(values, list | tuple) else type(values).__name__


def _hold_out(batch: Batch, fraction: float, seed: int, name: str, task: str) -> Tensor:
    if isinstance(fraction, bool) or not 0 < fraction < 1:
        raise ValueError(f"{name}: expected a fraction between 0 and 1, or samples as train, got {fraction!r}")
    if task == "classification" and batch.target.dim() == 1:
        return hold_out_per_class(batch.target, float(fraction), seed)
    return hold_out(range(len(batch)), float(fraction), seed)


def _suitable(x: Tensor) -> Noise:
    if not x.numel():
        return Noise()
    std, mean = (value.item() for value in torch.std_mean(x.double(), correction=0))
    if x.dtype == torch.uint8:
        return Noise(1.0, 2.0, clamp=(0.0, 255.0), normalize=(255.0, mean / 255, max(std / 255, 1e-3)))
    return Noise(_SIGMA_UNIT * (std if std > 0 else 1.0))
