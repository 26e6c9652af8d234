"""Small encoders for the data sets' modalities, each from (B, ...) to (B, width, ...).

Any module with an `out_features` attribute, or whose features have a known width, can replace them.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ._arguments import Recorded


def _stages(channels: int, widths: list[int], kernels: list[int], dims: int) -> list[nn.Module]:
    """Strided convolutions of 1 or 2 dimensions, each with BatchNorm and ReLU; each halves every extent."""
    conv, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dims - 1]
    layers: list[nn.Module] = []
    for fan_in, fan_out, kernel in zip([channels, *widths], widths, kernels, strict=False):
        layers += [conv(fan_in, fan_out, kernel, stride=2, padding=kernel // 2, bias=False), norm(fan_out), nn.ReLU()]
    return layers


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")


def _width(encoder: nn.Module, out_features: int | None) -> int:
    width = out_features or getattr(encoder, "out_features", None)
    if width is None:
        raise ValueError("out_features: expected the width of the encoder, which does not tell it, got None")
    return width


class ConvEncoder1d(Recorded, nn.Sequential):
    """Signals: three strided convolutions, (B, channels, T) to (B, width, ceil(T / 8))."""

    def __init__(self, channels: int, width: int = 64):
        _check(channels=channels, width=width)
        super().__init__(*_stages(channels, [max(1, width // 2), width, width], [9, 5, 5], 1))
        self.out_features = width


class MLPEncoder(Recorded, nn.Sequential):
    """Feature vectors: two linear layers with BatchNorm and ReLU, (B, features) to (B, width)."""

    def __init__(self, features: int, width: int = 64):
        _check(features=features, width=width)
        layers: list[nn.Module] = []
        for fan_in, fan_out in ((features, 2 * width), (2 * width, width)):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU()]
        super().__init__(*layers)
        self.out_features = width


class TanhEncoder(Recorded, nn.Sequential):
    """Feature vectors: six linear layers with tanh and without normalisation, (B, features) to (B, width).

    It learns much more slowly than an `MLPEncoder`, so that its modality lags behind the others.
    """

    DEPTH = 6

    def __init__(self, features: int, width: int = 64):
        _check(features=features, width=width)
        layers: list[nn.Module] = []
        for fan_in in (features, *[width] * (self.DEPTH - 1)):
            layers += [nn.Linear(fan_in, width), nn.Tanh()]
        super().__init__(*layers)
        self.out_features = width


class SpectrogramEncoder(Recorded, nn.Sequential):
    """Spectrograms: four strided convolutions, (B, channels, F, T) to (B, width, ceil(F / 16), ceil(T / 16))."""

    def __init__(self, width: int = 64, channels: int = 1):
        _check(channels=channels, width=width)
        widths = [max(1, width // part) for part in (4, 2, 1, 1)]
        super().__init__(*_stages(channels, widths, [7, 3, 3, 3], 2))
        self.out_features = width


class Framewise(Recorded, nn.Module):
    """An encoder of images applied to every frame: (B, C, T, H, W) to (B, width, T, ...).

    Args:
        encoder: from (B, C, H, W) to (B, width, ...), such as a ResNet without its head.
        out_features: the width; None for the encoder's own attribute.

    Raises:
        ValueError: if the width is not known.
    """

    def __init__(self, encoder: nn.Module, out_features: int | None = None):
        super().__init__()
        self.encoder, self.out_features = encoder, _width(encoder, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Fold the frames into the batch, encode them, and unfold them again."""
        if x.dim() != 5:
            raise ValueError(f"x: expected frames (B, C, T, H, W), got {tuple(x.shape)}")
        features = self.encoder(x.transpose(1, 2).flatten(0, 1))
        return features.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class Tokens(Recorded, nn.Module):
    """An encoder with channels last, such as a transformer: its output (B, T, ..., C) becomes (B, C, T, ...).

    Args:
        encoder: from (B, ...) to (B, T, ..., C).
        out_features: C; None for the encoder's own attribute.

    Raises:
        ValueError: if the width is not known.
    """

    def __init__(self, encoder: nn.Module, out_features: int | None = None):
        super().__init__()
        self.encoder, self.out_features = encoder, _width(encoder, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, and move the last dimension of the features to position 1."""
        features = self.encoder(x)
        if features.dim() < 3 or features.shape[-1] != self.out_features:
            raise ValueError(f"encoder: expected tokens (B, T, ..., {self.out_features}), got {tuple(features.shape)}")
        return features.movedim(-1, 1)


class FrameEncoder(Framewise):
    """Frames: five strided convolutions each, (B, channels, T, H, W) to (B, width, T, ceil(H / 32), ceil(W / 32))."""

    def __init__(self, width: int = 64, channels: int = 3):
        _check(channels=channels, width=width)
        widths = [max(1, width // part) for part in (4, 2, 1, 1, 1)]
        super().__init__(nn.Sequential(*_stages(channels, widths, [7, 3, 3, 3, 3], 2)), width)


class SegmentationEncoder(Recorded, nn.Module):
    """Images for per-pixel labels: (B, channels, H, W) to (B, width, ceil(H / 8), ceil(W / 8)).

    Three strided convolutions, then two dilated ones with a residual; the receptive field is 115 x 115 pixels.
    """

    def __init__(self, channels: int, width: int = 64):
        _check(channels=channels, width=width)
        super().__init__()
        widths = [max(1, width // part) for part in (4, 2, 1)]
        self.stages = nn.Sequential(*_stages(channels, widths, [7, 3, 3], 2))
        self.context = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=4, dilation=4, bias=False),
            nn.BatchNorm2d(width),
        )
        self.out_features = width

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, ceil(H / 8), ceil(W / 8))."""
        features = self.stages(x)
        return F.relu(features + self.context(features))


ENCODERS: dict[str, type[nn.Module]] = {
    encoder.__name__: encoder
    for encoder in (
        ConvEncoder1d,
        MLPEncoder,
        TanhEncoder,
        SpectrogramEncoder,
        Framewise,
        Tokens,
        FrameEncoder,
        SegmentationEncoder,
    )
}


def encoder_for(shape: Sequence[int], width: int = 64, task: str = "classification") -> nn.Module:
    """A small encoder with the given width, for samples of a shape without the batch dimension.

    Args:
        shape: (F,) features, (C, T) a signal, (C, H, W) an image or a spectrogram, (C, T, H, W) frames;
            in segmentation (C, H, W).
        width: channels of the encoder's features.
        task: "classification" or "segmentation".

    Raises:
        ValueError: for any other shape.
    """
    if task == "segmentation":
        if len(shape) == 3:
            return SegmentationEncoder(shape[0], width)
    elif len(shape) in (1, 2):
        return (MLPEncoder, ConvEncoder1d)[len(shape) - 1](shape[0], width)
    elif len(shape) in (3, 4):
        return (SpectrogramEncoder, FrameEncoder)[len(shape) - 3](width, shape[0])
    expected = "(C, H, W)" if task == "segmentation" else "(F,), (C, T), (C, H, W) or (C, T, H, W)"
    raise ValueError(f"shape: expected samples {expected} for an encoder of this package, got {tuple(shape)}")
