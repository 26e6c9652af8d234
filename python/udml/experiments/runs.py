"""One job: train, measure, return plain numbers."""

import time
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..data import MultimodalData, load_data
from ..models import build_model
from ..training.config import TrainConfig
from ..training.fit import Result, train
from .judged import measured, probes
from .kinds import noise_types
from .measures import GradientNorms, measure, on, tuning_score
from .plan import Job
from .unseen import measure_unseen
from .watcher import Watcher, observed

_BRIEF = ("fusion", "views")


def execute(job: Job) -> dict[str, Any]:
    """A job's result, which is the same for the same job; it uses one thread.

    Returns:
        "seconds"; for a tuning job "validation", the `tuning_score` on the validation split; for the noise
        types the result of `noise_types`; else the result of `measure` and, unless brief, "history", "probe" (see
        `probes`) and, in the main comparison, "unseen".
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _execute(job) | {"seconds": time.perf_counter() - began}
    finally:
        torch.set_num_threads(threads)


def _execute(job: Job) -> dict[str, Any]:
    config = TrainConfig(device="cpu", **job.config)
    data = _data(config.data, config.views, config.split_seed)

    def model() -> nn.Module:
        encoders = data.encoders(config.width)
        return build_model(config.method, encoders, len(data.spec.classes), fusion=config.fusion, **job.options)

    if job.group == "kinds":
        return noise_types(config, data, model)
    if job.group == "suppression":
        watcher = Watcher(data)
        result = train(config, data, model=model, callbacks=[watcher], progress=False)
        return observed(result, watcher, data, job.draws)
    norms = GradientNorms()
    result = train(config, data, model=model, callbacks=[norms], progress=False)
    if job.group == "tune":
        ask = on(result.model, data.validation, data.spec, result.weighting)
        return {"validation": tuning_score(ask, data.spec.modalities, job.draws)}
    if job.group in ("design", "design-test"):
        split = data.validation if job.group == "design" else data.test
        return measured(result.model, data, split, result.weighting, job.draws)
    brief = job.group in _BRIEF
    found = measure(result.model, data, weighting=result.weighting, draws=job.draws, brief=brief)
    if brief:
        return found
    found |= {"probe": probes(result.model, data, data.test), "history": _history(result, norms, data)}
    return found | ({"unseen": measure_unseen(result.model, data, result.weighting)} if job.group == "main" else {})


@lru_cache(maxsize=4)
def _data(name: str, views: str | None, seed: int) -> MultimodalData:
    return load_data(name, seed=seed, views=None if views is None else tuple(views.split(",")))


def _history(result: Result, norms: GradientNorms, data: MultimodalData) -> dict[str, Any]:
    """By epoch: the phase, and for each modality the mean weight in training and the gradient's norm."""
    names = data.spec.modalities
    return {
        "phase": [row["phase"] for row in result.history],
        "weights": {name: [row[f"weight_{name}"] for row in result.history] for name in names},
        "gradients": {name: [epoch[m] for epoch in norms.epochs] for m, name in enumerate(names)},
    }
