"""How wide an encoder's features are, and which of their dimensions are the samples and the channels."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .._names import modality_names
from ..encoders import ENCODERS

_ATTRIBUTES = ("out_features", "out_channels", "num_features", "num_channels")


def encoder_widths(encoders: Mapping[str, nn.Module], width: int | Mapping[str, int] | None = None) -> dict[str, int]:
    """The channels of each encoder's features, by modality name.

    Args:
        encoders: by modality name, 1 to 16.
        width: one for all, or by name; None, or a name that is left out, reads it from the encoder.

    Raises:
        ValueError: encoders of a wrong number or name, width for another name, a width that is not positive, or one
            that cannot be read; TypeError: encoders that are not modules by name.
    """
    if not isinstance(encoders, (Mapping, nn.ModuleDict)):
        raise TypeError(f"encoders: expected modules by modality name, got {type(encoders).__name__}")
    modality_names("encoders", encoders)
    for name, encoder in encoders.items():
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoders[{name!r}]: expected a module, got {type(encoder).__name__}")
    if isinstance(width, Mapping):
        other = [name for name in width if name not in encoders]
        if other:
            raise ValueError(f"width: expected the names {', '.join(encoders)}, got {', '.join(other)}")
        given = dict(width)
    else:
        given = {} if width is None else dict.fromkeys(encoders, width)
    widths = {name: given[name] if name in given else _read(name, encoder) for name, encoder in encoders.items()}
    for name, value in widths.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"width: expected a positive integer for {name}, got {value!r}")
    return widths


def _read(name: str, encoder: nn.Module) -> int:
    """`out_features` of the encoder, or the channels that its last linear, convolution or norm layer gives."""
    for module in (encoder, *reversed(list(encoder.modules()))):
        for attribute in _ATTRIBUTES:
            value = getattr(module, attribute, None)
            if isinstance(value, int):
                return value
    raise ValueError(
        f"encoders[{name!r}]: expected an `out_features` attribute, or a linear, convolution or norm layer, to read the"
        f" width of its features from, got {type(encoder).__name__}; give width=C, or width={{{name!r}: C}}"
    )


def channels_last(encoder: nn.Module) -> bool:
    """Whether an encoder may give its channels in the last dimension, by its last layer with parameters.

    A convolution or a norm over channels has them in dimension 1, as this package's encoders do.
    """
    if isinstance(encoder, tuple(ENCODERS.values())):
        return False
    layers = [m for m in encoder.modules() if any(True for _ in m.parameters(recurse=False))]
    return bool(layers) and not isinstance(layers[-1], _ConvNd | _NormBase | nn.GroupNorm)


def check_features(
    features: Tensor, name: str, width: int, x: Tensor, *, segmenting: bool = False, last: bool = False
) -> None:
    """Raise where features are not (B, width, ...), in segmentation (B, width, h, w).

    Args:
        features: of the encoder of modality `name`.
        width: their channels.
        x: the encoder's input (B, ...).
        segmenting: whether the task is segmentation.
        last: whether the encoder may give its channels last (`channels_last`): where T = C, (B, T, C) has the right
            shape, and its strides decide.

    Raises:
        TypeError: the features are no tensor.
        ValueError: they have another shape.
    """
    where, expected = f"encoders[{name!r}]", f"(B, {width}, h, w)" if segmenting else f"(B, {width}, ...)"
    if not isinstance(features, Tensor):
        raise TypeError(f"{where}: expected features {expected}, got {type(features).__name__}")
    got = f"shape {tuple(features.shape)}"
    if features.dim() >= 2 and features.shape[0] != len(x):
        hint = ""
        if x.dim() == 5:
            hint = (
                "; for an encoder of images, which takes frames as samples, udml.encoders.Framewise applies it to each"
            )
        raise ValueError(f"{where}: expected features {expected} of {len(x)} samples, got {got}{hint}")
    tokens = "; udml.encoders.Tokens takes an encoder whose channels come last"
    if features.dim() < 2 or features.shape[1] != width or (segmenting and features.dim() != 4):
        hint = tokens if features.dim() > 2 and features.shape[-1] == width else f"; give width={{{name!r}: C}}"
        raise ValueError(f"{where}: expected features {expected}, got {got}{hint}")
    # Transposed features keep the strides that the last layer gave them.
    if last and features.dim() > 2 and features.shape[-1] == width and features.stride(1) != 1:
        raise ValueError(f"{where}: expected features {expected}, got {got} with the channels last{tokens}")
