"""Build the data and the model of a run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .._arguments import arguments_of
from ..data import DataSpec, MultimodalData, load_data
from ..models import MultimodalModel, build_model
from ..models.recipe import method_of
from .config import TrainConfig

# The fields of TrainConfig that are arguments of the models; None means the method's default.
MODEL_SETTINGS = ("gamma", "beta", "lam", "temperature", "floor", "momentum", "preset")

# Encoders by modality, or a function that builds them after torch's generator has been seeded with the run's seed.
Encoders = Mapping[str, nn.Module] | Callable[[], Mapping[str, nn.Module]]


def read_data(config: TrainConfig) -> MultimodalData:
    """The data set that the config names."""
    views = None if config.views is None else tuple(name.strip() for name in config.views.split(","))
    return load_data(config.data, config.root, seed=config.split_seed, views=views)


def make_model(config: TrainConfig, data: MultimodalData, encoders: Encoders | None = None) -> MultimodalModel:
    """The config's method for the data's modalities and classes, initialised from torch's generator.

    Raises:
        ValueError: if the encoders do not match the data's modalities.
    """
    spec = data.spec
    if encoders is None:
        encoders = data.encoders(config.width)
    elif not isinstance(encoders, Mapping | nn.ModuleDict):
        if not callable(encoders):
            raise TypeError(f"encoders: expected modules by modality name, got {type(encoders).__name__}")
        encoders = encoders()
    if set(encoders) != set(spec.modalities):
        expected, got = ", ".join(spec.modalities), ", ".join(encoders)
        raise ValueError(f"encoders: expected one for each modality of {spec.name} ({expected}), got {got}")
    return build_model(
        config.method,
        {name: encoders[name] for name in spec.modalities},
        len(spec.classes),
        fusion=config.fusion,
        task=spec.task,
        **{name: getattr(config, name) for name in MODEL_SETTINGS},
    )


def of_model(config: TrainConfig, model: nn.Module) -> TrainConfig:
    """The config, with the fields that would build a model replaced by what a given model was built from.

    Raises:
        ValueError: for a field that asks for something other than what the model has.
    """
    given = arguments_of(model) or {}
    for name in MODEL_SETTINGS:
        asked = getattr(config, name)
        if asked is not None and asked != given.get(name):
            expected = f"None or {given.get(name)!r}, as the model was built"
            raise ValueError(f"{name}: expected {expected}, got {asked!r}")
    settings: dict[str, Any] = {name: given.get(name) for name in MODEL_SETTINGS}
    return replace(
        config,
        method=method_of(model) or type(model).__qualname__,
        fusion=given.get("fusion", config.fusion),
        width=next((w for w in [getattr(model, "width", None)] if isinstance(w, int)), config.width),
        **settings,
    )


def check_model(model: MultimodalModel, spec: DataSpec) -> None:
    """Raises TypeError if this is not a MultimodalModel, ValueError if its modalities, classes or task differ."""
    if not all(hasattr(model, name) for name in ("modalities", "num_classes", "task", "loss", "after_backward")):
        raise TypeError(f"model: expected a MultimodalModel, or a function that builds one, got {type(model).__name__}")
    for name, has, expected in (
        ("modalities", tuple(model.modalities), spec.modalities),
        ("num_classes", model.num_classes, len(spec.classes)),
        ("task", model.task, spec.task),
    ):
        if has != expected:
            raise ValueError(f"model: expected the {name} of {spec.name}, {expected}, got {has}")


def own_generator():
    """A context that restores torch's generator at its end."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))
