from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import udml_kernels

# Their sigma has no units: a factor of the input, or a fraction of its elements.
_UNITLESS = ("speckle", "salt_pepper", "dropout")


@dataclass(frozen=True)
class Noise:
    """What a noise level means on one modality's raw input.

    Attributes:
        unit: the noise's standard deviation at sigma = 1, in the input's units; not negative.
        power: the standard deviation is unit * sigma ** power; positive.
        clamp: (low, high) that the noisy input is clamped to, or None; salt_pepper needs it.
        normalize: (scale, mean, std) of y = (x / scale - mean_c) / std_c, after noise and clamp, or None.

    Raises:
        ValueError: naming the attribute, what came and what is expected.
    """

    unit: float = 1.0
    power: float = 1.0
    clamp: tuple[float, float] | None = None
    normalize: tuple | None = None

    def __post_init__(self):
        if not self.unit >= 0:
            raise ValueError(f"unit: expected a number that is not negative, got {self.unit}")
        if not self.power > 0:
            raise ValueError(f"power: expected a positive number, got {self.power}")

    def strength(self, sigma: Tensor) -> Tensor:
        """Levels to standard deviations in the input's units, of the same shape."""
        return self.unit * (sigma if self.power == 1 else sigma**self.power)


class NoiseInjector(nn.Module):
    """Noise of a known level on every modality, each with its own stream of the step's seed.

    Args:
        noises: what a level means, for all modalities or for each: a `Noise`, or a number, its unit.

    Source: UDML, arXiv 2603.19681 (noise injection); `udml_kernels.inject_noise` defines the kinds.
    """

    def __init__(self, noises: float | Noise | Sequence[float | Noise] = 1.0):
        super().__init__()
        self.noises = tuple(map(_noise, noises)) if isinstance(noises, (list, tuple)) else _noise(noises)

    def forward(
        self,
        inputs: Sequence[Tensor],
        sigma: Tensor,
        *,
        kind: str | Tensor = "gaussian",
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> list[Tensor]:
        """Inputs to noisy inputs.

        Args:
            inputs: M tensors (B, ...), floating or uint8.
            sigma: (B, M), levels, not negative. For speckle, salt_pepper and dropout it is the op's own sigma, a
                factor or a fraction: neither unit nor power applies.
            kind: a name, or indices into `udml_kernels.KINDS`, (B,) or (B, M).
            seed: int64 (1,); None draws one.
            sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

        Returns:
            M tensors of the inputs' shapes, in their dtypes; uint8 becomes float32.

        Raises:
            ValueError, TypeError: naming the argument, what came and what is expected.
        """
        noises = self.noises if isinstance(self.noises, tuple) else (self.noises,) * len(inputs)
        if len(inputs) != len(noises):
            raise ValueError(f"inputs: expected {len(noises)}, one a modality, got {len(inputs)}")
        if tuple(sigma.shape) != (len(inputs[0]), len(inputs)):
            raise ValueError(f"sigma: expected shape {len(inputs[0]), len(inputs)}, got {tuple(sigma.shape)}")
        if seed is None:
            seed = udml_kernels.draw_seed(sigma.device)
        noisy = []
        for m, (x, noise) in enumerate(zip(inputs, noises, strict=True)):
            kind_m = kind[:, m] if isinstance(kind, Tensor) and kind.dim() == 2 else kind
            noisy.append(
                udml_kernels.inject_noise(
                    x,
                    _strength(noise, sigma[:, m], kind_m),
                    kind=kind_m,
                    clamp=noise.clamp,
                    normalize=noise.normalize,
                    seed=seed,
                    stream=m,
                    sample_ids=sample_ids,
                )
            )
        return noisy


def _noise(value: float | Noise) -> Noise:
    return value if isinstance(value, Noise) else Noise(unit=value)


def _strength(noise: Noise, sigma: Tensor, kind: str | Tensor) -> Tensor:
    if isinstance(kind, str):
        return sigma if kind in _UNITLESS else noise.strength(sigma)
    unitless = sum(kind == udml_kernels.KINDS.index(name) for name in _UNITLESS)
    return torch.where(unitless.bool(), sigma, noise.strength(sigma))
