"""Tensors of a generated case: the suite's `Draw`, with a layout and a kind of values chosen for each tensor."""

import itertools
from typing import Any

import torch
from torch import Tensor

from ..checks import compute_dtype
from .choices import Choices
from .draw import LAYOUTS, Draw, stray_value

# Values of an op's argument `stream`, including the largest that is allowed.
STREAMS = (0, 1, 7, 2**24 - 1)
PLANTED = (0.0, -0.0, torch.nan, torch.inf, -torch.inf, "tiny", "-tiny", "subnormal", "max", "-max")


def _embedded(value: Tensor) -> Tensor:
    """A block inside a wider tensor, with neighbours in every dimension and a storage offset."""
    wide = torch.full([size + 3 for size in value.shape], stray_value(value.dtype), dtype=value.dtype)
    for dim, size in enumerate(value.shape):
        wide = wide.narrow(dim, 2, size)
    return wide.copy_(value)


def _rotated(value: Tensor) -> Tensor:
    """Dimensions in an order that is neither row-major nor its reverse."""
    dims = [*range(1, value.dim()), 0]
    return value.permute(dims).contiguous().permute([dims.index(d) for d in range(value.dim())])


EVERY_LAYOUT = LAYOUTS | {"embedded": _embedded, "rotated": _rotated}


class Values(Draw):
    """`special`: NaN, infinities, zeros and the dtype's extremes may occur among the values of `normal` and `powers`.

    `scaled`: values may have any magnitude.
    """

    def __init__(self, key: str, choices: Choices, dtype: torch.dtype):
        super().__init__(key, dtype)
        self.choices = choices
        # In a third of the cases every tensor gets a random layout; in the others all are contiguous.
        self._strided = choices.pick(False, False, True)
        self._scaled = choices.one_in(4)
        self.special = choices.one_in(8)

    def tensor(self, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        value = value.to(torch.get_default_device(), dtype or self.dtype)
        lay = EVERY_LAYOUT["contiguous"]
        if self._strided and value.dim() and value.numel():
            lay = EVERY_LAYOUT[self.choices.pick(*EVERY_LAYOUT)]
        return lay(value).detach()

    def _with_specials(self, value: Tensor) -> Tensor:
        dtype = self.dtype if self.dtype.is_floating_point else torch.float32
        info = torch.finfo(dtype)
        # No squares beyond float64, for which no wider dtype gives the truth; infinities come from `special` alone.
        largest = 1e150 if dtype == torch.float64 else info.max
        value = value.clamp(-largest, largest)
        if self.special and value.numel():
            least = info.smallest_normal * info.eps
            named = {"tiny": info.tiny, "subnormal": least, "max": largest}
            if dtype == torch.float64:
                named |= {"tiny": 1 / largest, "subnormal": 1 / largest}
            flat = value.view(-1)
            for _ in range(self.choices.below(4)):
                planted = self.choices.pick(*PLANTED)
                if isinstance(planted, str):
                    planted = named[planted.removeprefix("-")] * (-1 if planted[0] == "-" else 1)
                flat[self.choices.below(len(flat))] = planted
        return value

    def normal(self, *shape: int, scale: float = 1.0, mean: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
        kinds = [self._plain, self._plain, self._ties, self._sparse, self._constant]
        if self._scaled:
            kinds += [self._rescaled, self._many_sizes]
        value = self.choices.pick(*kinds)(shape) * scale + mean
        return self.tensor(self._with_specials(value), dtype)

    def powers(self, low: float, high: float, *shape: int) -> Tensor:
        exponents = low + (high - low) * torch.rand(shape, generator=self.generator, device="cpu", dtype=torch.float64)
        return self.tensor(self._with_specials(10**exponents).abs())

    def _plain(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, device="cpu", dtype=torch.float64)

    def _ties(self, shape) -> Tensor:
        """Small integers, including zeros of both signs."""
        return self._plain(shape).round()

    def _sparse(self, shape) -> Tensor:
        """Zeros except for one element in sixteen, and a first element that outweighs the rest."""
        value = torch.where(torch.rand(shape, generator=self.generator, device="cpu") < 1 / 16, self._plain(shape), 0)
        if value.numel():
            value.view(-1)[0] = value.numel()
        return value

    def _constant(self, shape) -> Tensor:
        return torch.full(shape, self.choices.pick(0.0, 1.0, -1.0, 0.3, -0.0), dtype=torch.float64, device="cpu")

    def _power(self) -> float:
        """A decimal exponent from half the range of the dtype, as squares are formed."""
        return self.choices.number(*{torch.float64: (-150, 150), torch.float16: (-4, 2)}.get(self.dtype, (-19, 19)))

    def _rescaled(self, shape) -> Tensor:
        return self._plain(shape) * 10.0 ** self._power()

    def _many_sizes(self, shape) -> Tensor:
        low, high = sorted((self._power(), self._power()))
        size = low + (high - low) * torch.rand(shape, generator=self.generator, device="cpu", dtype=torch.float64)
        return self._plain(shape).sign() * 10**size

    def random_ids(self, batch: int) -> list[int]:
        ids = torch.randint(-(2**62), 2**62, (batch,), generator=self.generator, device="cpu").tolist()
        # Equal ids are allowed, too.
        return ids if self.choices.one_in(2) else list(itertools.islice(itertools.cycle((7, -1, 2**40 + 3)), batch))

    def noise_options(self, batch: int) -> dict[str, Any]:
        """Options of an op that draws random numbers."""
        stream = self.choices.pick(*STREAMS)
        return {"stream": stream, "sample_ids": self.random_ids(batch) if self.choices.one_in(4) else None}

    def levels(self, batch: int, low: float, high: float, shape: tuple[int, ...] = ()) -> Tensor:
        """Positive numbers of any magnitude, one per sample, in the arithmetic's dtype."""
        wide = compute_dtype(self.dtype)
        powers = self.choices.number(low, high), self.choices.number(low, high)
        exponents = torch.rand((batch, *shape), generator=self.generator, device="cpu", dtype=torch.float64)
        value = 10 ** (min(powers) + exponents * abs(powers[1] - powers[0]))
        return self.tensor(value.clamp(torch.finfo(wide).tiny, torch.finfo(wide).max), wide)

    def seed(self) -> Tensor:
        return self.tensor(
            torch.randint(-(2**63), 2**63 - 1, (1,), generator=self.generator, device="cpu"), torch.int64
        )
