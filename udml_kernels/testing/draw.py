"""Test inputs: drawn in float64 from a key, rounded once to the tested dtype, laid out in memory as asked."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SEED = 0x9E3779B97F4A7C15 - 2**64
SPECIALS = (torch.nan, torch.inf, -torch.inf)


def stray_value(dtype: torch.dtype):
    """What lies between the elements of a strided tensor: NaN or no valid code, so that a stray read shows."""
    if dtype == torch.bool:
        return True
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max


def _sliced(value: Tensor) -> Tensor:
    """Every other element of the last dimension."""
    *rows, last = value.shape
    wide = torch.full((*rows, 2 * last + 3), stray_value(value.dtype), dtype=value.dtype)
    view = wide[..., 1 : 2 * last + 1 : 2]
    return view.copy_(value)


def _misaligned(value: Tensor) -> Tensor:
    """Contiguous, one element off any vector's alignment."""
    flat = torch.empty(value.numel() + 1, dtype=value.dtype)
    return flat[1:].view(value.shape).copy_(value)


def _channels_last(value: Tensor) -> Tensor:
    return value.movedim(1, -1).contiguous().movedim(-1, 1) if value.dim() > 2 else value.clone()


def _transposed(value: Tensor) -> Tensor:
    dims = tuple(reversed(range(value.dim())))
    return value.permute(dims).contiguous().permute(dims)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda value: value.clone(memory_format=torch.contiguous_format),
    "misaligned": _misaligned,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "sliced": _sliced,
    # These three have strides of 0, so they repeat one value in the place of others.
    "expanded_rows": lambda value: value[:1].clone().expand(value.shape),
    "expanded_columns": lambda value: value[..., :1].clone().expand(value.shape),
    "expanded": lambda value: value.flatten()[0].clone().expand(value.shape),
}


class Draw:
    """A source of inputs that depend on nothing but its key and number. They are drawn on the CPU, the same for every
    device, and moved to the default device."""

    def __init__(
        self, key: str, dtype: torch.dtype, layout: str = "contiguous", special: bool = False, number: int = 0
    ):
        self.dtype, self.layout, self.special, self.number = dtype, layout, special, number
        key = f"{key} {number}" if number else key
        self.generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        self._specials_written = 0

    def _with_specials(self, value: Tensor) -> Tensor:
        if self.special:
            flat = value.view(-1)
            for i, special in enumerate(SPECIALS):
                # Different places in each tensor, so that every special value also meets ordinary ones.
                flat[(7 * self._specials_written + 5 * i + 1) % len(flat)] = special
            self._specials_written += 1
        return value

    def tensor(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        value = value.to(torch.get_default_device(), dtype or self.dtype)
        lay = LAYOUTS[self.layout] if value.dim() and value.numel() else LAYOUTS["contiguous"]
        return lay(value).detach()

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
        value = torch.randn(shape, generator=self.generator, device="cpu", dtype=torch.float64)
        return self.tensor(self._with_specials(value * scale + mean), dtype)

    def between(self, low: float, high: float, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        value = torch.rand(shape, generator=self.generator, device="cpu", dtype=torch.float64)
        return self.tensor(low + (high - low) * value, dtype)

    def powers(self, low: float, high: float, *shape: int) -> Tensor:
        """10^u with u uniform in [low, high); with NaN and infinities where asked, as in `normal`."""
        value = torch.rand(shape, generator=self.generator, device="cpu", dtype=torch.float64)
        return self.tensor(self._with_specials(10 ** (low + (high - low) * value)))

    def integers(self, count: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return self.tensor(torch.randint(count, shape, generator=self.generator, device="cpu"), dtype)

    def fractions(self, *shape: int) -> Tensor:
        """Multiples of 1/16 in [0, 1], exact in every dtype, so that kernel and reference take the same branch."""
        return self.integers(17, *shape).to(torch.float64).div(16).to(self.dtype)

    def mask(self, *shape: int) -> Tensor:
        """Mostly True; row 0 is all False where there is more than one row, the last row all True."""
        value = torch.rand(shape, generator=self.generator, device="cpu") < 0.7
        value[-1:] = True
        if shape[0] > 1:
            value[0] = False
        return self.tensor(value, torch.bool)

    def seed(self) -> Tensor:
        return torch.tensor([(SEED + self.number + 2**63) % 2**64 - 2**63], dtype=torch.int64)

    def noise(self, stream: int = 0, sample_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """The arguments of an op that draws random numbers."""
        ids = None if sample_ids is None else self.tensor(torch.tensor(sample_ids), torch.int64)
        return {"seed": self.seed(), "stream": stream, "sample_ids": ids}

    def features(self, batch: int, modalities: int, width: Any, spatial: tuple[int, ...] = ()) -> list[Tensor]:
        """A tensor for each modality. `width`: their channels or shapes, one for all or one for each."""
        widths = (width,) * modalities if isinstance(width, int) else width
        return [self.normal(batch, *((w, *spatial) if isinstance(w, int) else w)) for w in widths]


def named_tensors(arguments: dict) -> Iterator[tuple[str, Tensor]]:
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value) if isinstance(item, Tensor))


def mapped(arguments: dict, function: Callable[[str, Tensor], Tensor]) -> dict:
    """The same arguments with `function(name, tensor)` in the place of each tensor."""

    def over(name, value):
        if isinstance(value, Tensor):
            return function(name, value)
        if isinstance(value, (list, tuple)):
            return type(value)(over(f"{name}[{i}]", item) for i, item in enumerate(value))
        return value

    return {name: over(name, value) for name, value in arguments.items()}
