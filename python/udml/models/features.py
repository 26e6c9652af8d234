"""The layout of an encoder's output: which dimensions are the samples and the channels."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ..encoders import ENCODERS


def channels_last(encoder: nn.Module) -> bool:
    """Whether an encoder may return its channels in the last dimension, judged by its last layer with parameters.

    A convolution or a norm over channels has them in dimension 1, as this package's encoders do.
    """
    if isinstance(encoder, tuple(ENCODERS.values())):
        return False
    layers = [m for m in encoder.modules() if any(True for _ in m.parameters(recurse=False))]
    return bool(layers) and not isinstance(layers[-1], _ConvNd | _NormBase | nn.GroupNorm)


def check_features(
    features: Tensor, name: str, width: int, x: Tensor, *, segmenting: bool = False, last: bool = False
) -> None:
    """Raise if features are not (B, width, ...), or in segmentation (B, width, h, w).

    Args:
        features: the output of the encoder of modality `name`.
        width: the expected number of channels.
        x: the encoder's input (B, ...).
        segmenting: whether the task is segmentation.
        last: whether the encoder may return its channels last (`channels_last`): if T = C, (B, T, C) has the right
            shape, and its strides decide.

    Raises:
        TypeError: if the features are not a tensor.
        ValueError: if they have another shape.
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
