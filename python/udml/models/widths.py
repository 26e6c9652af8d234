"""Settings for each modality by name: the width of its features, the limit of its embedding's std."""

import sys
from collections.abc import Mapping
from numbers import Real

from torch import nn

from .._names import modality_names

# Far above the standard deviation of any embedding of inputs of the usual size, and far below overflow.
STD_MAX = 100.0
_ATTRIBUTES = ("out_features", "out_channels", "num_features", "num_channels")


def encoder_widths(encoders: Mapping[str, nn.Module], width: int | Mapping[str, int] | None = None) -> dict[str, int]:
    """The channels of each encoder's features, by modality name.

    Args:
        encoders: by modality name, 1 to 16.
        width: one for all, or by name; None, or a name that is left out, means reading it from the encoder.

    Raises:
        ValueError: for a wrong number or name of encoders, a width for another name, or one that is not positive or
            cannot be read; TypeError: for encoders that are not modules by name.
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


def std_limits(
    encoders: Mapping[str, nn.Module], std_max: float | Mapping[str, float | None] | None
) -> dict[str, float | None]:
    """The upper limit of each modality's standard deviation, by name; None for no limit.

    Args:
        encoders: by modality name.
        std_max: one for all, or by name; None for no limit. A name that is left out has the limit `STD_MAX`.

    Raises:
        ValueError: for a limit of another name, or one that is not positive and finite; TypeError: for non-numbers.
    """
    given = dict(std_max) if isinstance(std_max, Mapping) else dict.fromkeys(encoders, std_max)
    other = [str(name) for name in given if name not in encoders]
    if other:
        raise ValueError(f"std_max: expected the names {', '.join(encoders)}, got {', '.join(other)}")
    for name, value in given.items():
        argument = f"std_max[{name!r}]" if isinstance(std_max, Mapping) else "std_max"
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{argument}: expected a positive number or None, got {value!r}")
        if value <= 0 or not value <= sys.float_info.max:
            raise ValueError(f"{argument}: expected a positive number or None, got {value!r}")
    return {name: given.get(name, STD_MAX) for name in encoders}


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
