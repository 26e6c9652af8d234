"""Load trained models."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from .._arguments import restore_buffers
from ..data import MultimodalData
from ..models.recipe import check_recipe, rebuild
from .build import own_generator
from .folder import read_checkpoint

_HELP = "load_model takes encoders={name: module} or model=..., built as for training"


def load_model(
    path: Path | str,
    data: MultimodalData | None = None,
    encoders: Mapping[str, nn.Module] | None = None,
    *,
    model: nn.Module | None = None,
) -> nn.Module:
    """The model of a best.ckpt, in evaluation mode, on the CPU; only tensors and plain types are unpickled.

    The checkpoint holds the arguments of this package's models and encoders, so these need only its path.

    Args:
        path: the checkpoint.
        data: the data it was trained on, to compare modalities and classes, and for the data's own encoders.
        encoders: by modality, those that are not this package's, built as they were for training; their weights are
            replaced by the checkpoint's.
        model: likewise a whole model, of a user's class or changed after it was built.

    Raises:
        ValueError: if the file is not such a checkpoint, or if encoders or the model are needed, or do not fit it:
            the message says what to pass.
    """
    best = read_checkpoint(Path(path))
    if not {"config", "state_dict", "buffers", "modalities", "classes", "model"} <= set(best):
        raise ValueError(f"{path}: expected a best.ckpt, got a checkpoint with {', '.join(map(str, best))}")
    if data is not None:
        for name in ("modalities", "classes"):
            if list(getattr(data.spec, name)) != best[name]:
                raise ValueError(
                    f"{path}: expected data with the {name} {best[name]}, got {list(getattr(data.spec, name))}"
                )
        own = [name for name, made in best["model"]["encoders"].items() if made is None]
        if own and encoders is None and model is None and data.make_encoders is not None:
            with own_generator():
                made = data.encoders(best["config"]["width"])
            encoders = {name: made[name] for name in own if name in made}
    try:
        with own_generator():
            model = rebuild(best["model"], encoders) if model is None else model
        check_recipe(best["model"], model)
    except ValueError as error:
        raise ValueError(f"{path}: {error} ({_HELP})") from error
    try:
        model.load_state_dict(best["state_dict"])
        restore_buffers(model, best["buffers"])
    except RuntimeError as error:
        raise ValueError(f"{path}: expected the weights of this model: {error}") from error
    return model.cpu().eval()
