from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn

import udml_kernels
from udml_kernels import checks

# Kinds whose sigma has no units: a factor of the input, or a fraction of its elements.
_UNITLESS = ("speckle", "salt_pepper", "dropout")
_REPLACE = "replace"


@dataclass(frozen=True)
class Noise:
    """The meaning of a noise level for one modality's raw input.

    Attributes:
        unit: the noise's standard deviation at sigma = 1, in the input's units; not negative.
        power: the standard deviation is unit * sigma ** power; positive.
        clamp: (low, high), the range to which the noisy input is clamped, or None; salt_pepper needs it.
        normalize: (scale, mean, std) of y = (x / scale - mean_c) / std_c, after noise and clamp, or None.
        replaced: factor of the standard deviation for the kind "replace"; not negative.
        shared_channels: use one draw for all channels (dim 1).
        whole: truncate to integers, towards 0, before the normalisation; it passes no gradient.

    Raises:
        ValueError: naming the attribute, what was given and what is expected.
    """

    unit: float = 1.0
    power: float = 1.0
    clamp: tuple[float, float] | None = None
    normalize: tuple | None = None
    replaced: float = 1.0
    shared_channels: bool = False
    whole: bool = False

    def __post_init__(self):
        if not self.unit >= 0:
            raise ValueError(f"unit: expected a number that is not negative, got {self.unit}")
        if not self.power > 0:
            raise ValueError(f"power: expected a positive number, got {self.power}")
        if not self.replaced >= 0:
            raise ValueError(f"replaced: expected a number that is not negative, got {self.replaced}")
        for name, size, parts in (("clamp", 2, "(low, high)"), ("normalize", 3, "(scale, mean, std)")):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, (tuple, list)) or len(value) != size):
                raise ValueError(f"{name}: expected {parts} or None, got {value!r}")

    def strength(self, sigma: Tensor) -> Tensor:
        """Levels to standard deviations in the input's units, of the same shape."""
        return self.unit * (sigma if self.power == 1 else sigma**self.power)


class NoiseInjector(nn.Module):
    """Noise of a known level on every modality, each with its own stream of the step's seed.

    Args:
        noises: the meaning of a level, for all modalities or for each: a `Noise`, or a number, its unit.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: UDML, arXiv 2603.19681 (noise injection); `udml_kernels.inject_noise` defines the kinds.
    """

    def __init__(self, noises: float | Noise | Sequence[float | Noise] = 1.0):
        super().__init__()
        self.noises = tuple(map(_noise, noises)) if isinstance(noises, (list, tuple)) else _noise(noises)

    def extra_repr(self) -> str:
        return f"noises={self.noises}"

    def forward(
        self,
        inputs: Sequence[Tensor],
        sigma: Tensor,
        *,
        kind: str | Tensor = "gaussian",
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> list[Tensor]:
        """Inputs to noisy inputs.

        Args:
            inputs: M tensors (B, ...), floating or uint8.
            sigma: (B, M), levels, not negative. For speckle, salt_pepper and dropout it is the op's own sigma, a
                factor or a fraction: neither unit nor power applies.
            kind: a name, or indices into `udml_kernels.KINDS`, (B,) or (B, M).
            seed: int64 (1,); None draws one.
            stream: that of the first modality; the others follow. A second injector of a step takes `stream=M`.
            sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

        Returns:
            M tensors of the inputs' shapes, in their dtypes; uint8 becomes float32.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        if isinstance(inputs, Tensor):
            raise TypeError(f"inputs: expected a list of tensors, one a modality, got a tensor {tuple(inputs.shape)}")
        noises = self.noises if isinstance(self.noises, tuple) else (self.noises,) * len(inputs)
        if len(inputs) != len(noises):
            raise ValueError(f"inputs: expected {len(noises)}, one a modality, got {len(inputs)}")
        checks.tensor_of("sigma", sigma, "a tensor (B, M) of floats or integers", checks.NUMBERS)
        checks.exact_shape("sigma", sigma, (len(inputs[0]), len(inputs)))
        _check_kind(kind, noises)
        for m, (x, noise) in enumerate(zip(inputs, noises, strict=True)):
            if noise.shared_channels and x.dim() < 2:
                raise ValueError(f"inputs[{m}]: expected (B, C, ...) to share a draw over C, got {tuple(x.shape)}")
        if seed is None:
            seed = udml_kernels.draw_seed(sigma.device)
        kinds = kind.unbind(1) if isinstance(kind, Tensor) and kind.dim() == 2 else [kind] * len(inputs)
        strengths = [_strength(noise, sigma[:, m], kinds[m]) for m, noise in enumerate(noises)]
        plain = not any(noise.shared_channels or noise.whole for noise in noises)
        if plain and len({x.dtype for x in inputs}) == 1:
            clamp, normalize = ([getattr(noise, name) for noise in noises] for name in ("clamp", "normalize"))
            options: dict = {"clamp": clamp, "normalize": normalize, "seed": seed, "stream": stream}
            strength = torch.stack(strengths, 1)
            return list(udml_kernels.inject_noise(list(inputs), strength, kind=kind, sample_ids=sample_ids, **options))
        return [
            _inject(x, noise, strengths[m], kinds[m], seed=seed, stream=stream + m, sample_ids=sample_ids)
            for m, (x, noise) in enumerate(zip(inputs, noises, strict=True))
        ]


def _inject(x: Tensor, noise: Noise, sigma: Tensor, kind: str | Tensor, **random) -> Tensor:
    if not (noise.shared_channels or noise.whole):
        return udml_kernels.inject_noise(x, sigma, kind=kind, clamp=noise.clamp, normalize=noise.normalize, **random)
    inject = _shared if noise.shared_channels else udml_kernels.inject_noise
    y = inject(x, sigma, kind=kind, clamp=noise.clamp, **random)
    y = y.trunc() if noise.whole else y
    return y if noise.normalize is None else udml_kernels.inject_noise(y, 0.0, normalize=noise.normalize, **random)


def _shared(x: Tensor, sigma: Tensor, *, kind: str | Tensor, sample_ids: Tensor | None, stream: int, **rest) -> Tensor:
    """Noise with one draw for all channels: each channel becomes a sample with the sample id of its image."""
    batch, channels = x.shape[:2]
    ids = torch.arange(batch, device=x.device) if sample_ids is None else sample_ids
    sigma, ids = (value.repeat_interleave(channels) for value in (sigma, ids))
    kind = kind.repeat_interleave(channels) if isinstance(kind, Tensor) else kind
    y = udml_kernels.inject_noise(x.flatten(0, 1), sigma, kind=kind, sample_ids=ids, stream=stream, **rest)
    return y.unflatten(0, (batch, channels))


def _noise(value: object) -> Noise:
    if not isinstance(value, (Noise, Real)):
        raise TypeError(f"noises: expected Noise or numbers, one or one a modality, got {type(value).__name__}")
    return value if isinstance(value, Noise) else Noise(unit=float(value))


def _check_kind(kind: str | Tensor, noises: Sequence[Noise]) -> None:
    if not isinstance(kind, (str, Tensor)):
        raise TypeError(f"kind: expected a name or a tensor of indices into KINDS, got {type(kind).__name__}")
    for m, noise in enumerate(noises if isinstance(kind, str) and kind == "salt_pepper" else ()):
        if noise.clamp is None:
            raise ValueError(f"noises[{m}].clamp: expected (low, high), the values that salt_pepper sets, got None")


def _strength(noise: Noise, sigma: Tensor, kind: str | Tensor) -> Tensor:
    strength = noise.strength(sigma)
    if isinstance(kind, str):
        return sigma if kind in _UNITLESS else strength * noise.replaced if kind == _REPLACE else strength
    if noise.replaced != 1:
        strength = torch.where(kind == udml_kernels.KINDS.index(_REPLACE), strength * noise.replaced, strength)
    unitless = torch.stack([kind == udml_kernels.KINDS.index(name) for name in _UNITLESS]).any(0)
    return torch.where(unitless, sigma, strength)
