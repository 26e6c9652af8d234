"""Convert the checkpoints of the authors' code to `UDML` and back."""

import math
import os
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..encoders import Framewise
from ..fusion import AuthorsFiLMFusion, AuthorsGatedFusion, ConcatFusion, SumFusion
from .udml import UDML

_NAMES = ("audio", "visual")
_BRANCHES = {"mu": "mu_dul_backbone", "logvar": "logvar_dul_backbone"}
# The authors' names of a fusion's parts.
_PARTS = {
    ConcatFusion: {"": "fc_out."},
    SumFusion: {"heads.0.": "fc_x.", "heads.1.": "fc_y."},
    AuthorsGatedFusion: {"maps.0.": "fc_x.", "maps.1.": "fc_y.", "out.": "fc_out."},
    AuthorsFiLMFusion: {"fc.": "fc.", "out.": "fc_out."},
}
_WRAPPER = "module."
_ALPHA = tuple(f"{name}_depend" for name in _NAMES)
# Maximum number of keys that a message lists.
_LISTED = 6


def load_authors(model: UDML, checkpoint: Mapping[str, Any] | str | os.PathLike) -> None:
    """Load a checkpoint of the authors' code: weights, BatchNorm statistics and alpha.

    Args:
        model: `UDML(preset="authors")` for the modalities "audio" and "visual", in this order. Its encoders have the
            parameters of the authors' backbones without the embedding, under the same names (conv1, bn1, layer1, ...),
            as a ResNet of torchvision without its fc does; the visual one may be in a `Framewise`.
        checkpoint: the file, or its contents: {"model": state dict, "audio_depend": float, "visual_depend": float,
            ...}, where the state dict's keys may begin with "module.". Its gamma and beta are not used: they are
            arguments of `UDML`.

    Raises:
        ValueError, TypeError: naming the argument, and the keys that are missing, unexpected or of another shape.
            In this case nothing has been written.
    """
    views = _views(model)
    assert model.dependency is not None
    if isinstance(checkpoint, (str, os.PathLike)):
        held = torch.load(checkpoint, map_location="cpu", weights_only=True)
    else:
        held = checkpoint
    state, alpha = _state(held), [_alpha(held, key) for key in _ALPHA]
    _check_keys(state, views)
    with torch.no_grad():
        for key, view in views.items():
            view.copy_(state[key])
        model.dependency.alpha.copy_(torch.tensor(alpha, dtype=torch.float64))
        model.dependency.batches.fill_(1)


def authors_state(model: UDML) -> dict[str, Any]:
    """What the authors' code saves: "model", "audio_depend", "visual_depend", "beta" and "gamma"; tensors are copies.

    Args:
        model: as for `load_authors`.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.
    """
    state = {f"{_WRAPPER}{key}": view.clone() for key, view in _views(model).items()}
    assert model.dependency is not None
    alpha = dict(zip(_ALPHA, model.dependency.alpha.tolist(), strict=True))
    return {"model": state, **alpha, "beta": model.loss_weights.kl, "gamma": model.loss_weights.unimodal}


def _views(model: UDML) -> dict[str, Tensor]:
    """The model's parameters and buffers under the authors' names, in the authors' shapes."""
    parts = _check_model(model)
    views: dict[str, Tensor] = {}
    assert model.estimator is not None
    estimators = model.estimator.twin_state_dict()
    for m, name in enumerate(_NAMES):
        encoder, head = model.encoders[name], model.heads[name]
        backbone = encoder.encoder if isinstance(encoder, Framewise) else encoder
        views |= {f"{name}_net.{key}": value for key, value in backbone.state_dict().items()}
        for branch, theirs in _BRANCHES.items():
            for key, value in getattr(head, branch).state_dict().items():
                # The authors' linear maps are 1x1 convolutions.
                value = value[..., None, None] if key == "0.weight" else value
                views[f"{name}_net.{theirs}.{key}"] = value
        prefix = f"{m}."
        for key, value in estimators.items():
            if key.startswith(prefix):
                views[f"{name}_variance_estimator.{key.removeprefix(prefix)}"] = value
    for key, value in model.fusion.state_dict().items():
        ours = next(part for part in parts if key.startswith(part))
        views[f"fusion_module.{parts[ours]}{key.removeprefix(ours)}"] = value
    return views


def _check_model(model: UDML) -> Mapping[str, str]:
    """Check that a model has the authors' layout; return the names of its fusion's parts."""
    if not isinstance(model, UDML):
        raise TypeError(f"model: expected UDML(preset='authors'), got {type(model).__name__}")
    expected = "UDML(preset='authors') with embeddings, estimator and dependency"
    s = model.settings
    if not (s.authors_heads and s.weigh_first and s.levels and s.probabilistic and s.estimator and s.dependency):
        raise ValueError(f"model: expected {expected}, got {s}")
    if model.modalities != _NAMES:
        raise ValueError(f"model: expected the modalities audio, visual, got {', '.join(model.modalities)}")
    parts = next((names for kind, names in _PARTS.items() if isinstance(model.fusion, kind)), None)
    if parts is None:
        raise ValueError(f"model: expected a fusion of concat, sum, gated, film, got {type(model.fusion).__name__}")
    return parts


def _state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a checkpoint, with "module." removed from its keys."""
    if not isinstance(checkpoint, Mapping):
        raise TypeError(f"checkpoint: expected a file or a mapping, got {type(checkpoint).__name__}")
    state = checkpoint.get("model")
    if not isinstance(state, Mapping):
        got = f"the keys {', '.join(map(str, [*checkpoint][:_LISTED])) or 'none'}"
        raise ValueError(f"checkpoint: expected 'model', a state dict, got {got}")
    return {str(key).removeprefix(_WRAPPER): value for key, value in state.items()}


def _alpha(checkpoint: Mapping[str, Any], key: str) -> float:
    value = checkpoint.get(key)
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, Real) or value <= 0 or not value < math.inf:
        raise ValueError(f"checkpoint[{key!r}]: expected a positive number, got {value!r}")
    return float(value)


def _check_keys(state: Mapping[str, Any], views: Mapping[str, Tensor]) -> None:
    wrong = {
        "it lacks": [key for key in views if key not in state],
        "it alone has": [key for key in state if key not in views],
        "of another shape": [
            f"{key} {_shape(state[key])} for {tuple(view.shape)}"
            for key, view in views.items()
            if key in state and _shape(state[key]) != tuple(view.shape)
        ],
    }
    found = [
        f"{what} {', '.join(keys[:_LISTED])}{f' and {len(keys) - _LISTED} more' if len(keys) > _LISTED else ''}"
        for what, keys in wrong.items()
        if keys
    ]
    if found:
        raise ValueError(f"checkpoint['model']: expected the model's keys and shapes, got {'; '.join(found)}")


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
