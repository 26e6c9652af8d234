"""Evaluate a model on a whole split, under noise that is the same for every model and every call."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from ..data.base import IGNORED, UNLABELLED, Batch, DataError, DataSpec
from ..data.sets import Split, as_split
from ..losses import resized
from .forward import NoisyPass
from .loaders import make_loader, stripes
from .randomness import evaluation_seed, mixed_sigma

MIX = "mix"
Levels = float | Sequence[float] | Tensor | str


@dataclass
class Evaluation:
    """The results of a model on a split of N samples.

    Attributes:
        score: the fraction of samples classified correctly; for segmentation the mean intersection over union.
        unimodal: by modality, the score of its unimodal logits on the samples where it is present; NaN if there are
            none.
        dependency: by modality, alpha, the mean over the samples; None if the method has none.
        mean_weights: by modality, the mean over the samples, 0 where it is missing; None if the method has none.
        logits: (N, K) float32; None for segmentation, where they would need too much memory.
        weights: (N, M), for segmentation the mean over the locations; None if the method has none.
        noise: (N, M), the predicted sigma, likewise; None if the method does not predict it.
        sigma: (N, M), the true levels.
        target: int64 (N,); None for segmentation.
    """

    score: float
    unimodal: dict[str, float]
    dependency: dict[str, float] | None
    mean_weights: dict[str, float] | None
    logits: Tensor | None
    weights: Tensor | None
    noise: Tensor | None
    sigma: Tensor
    target: Tensor | None

    @property
    def accuracy(self) -> float:
        """The score of a classification."""
        if self.target is None:
            raise AttributeError("accuracy: segmentation has a score, the mean intersection over union, alone")
        return self.score


def make_metric(spec: DataSpec, *, shared: bool) -> Metric:
    """Accuracy, or for segmentation the mean intersection over union; `shared`: computed over all processes."""
    options: dict[str, Any] = {"validate_args": False, "sync_on_compute": shared}
    if spec.task == "segmentation":
        return MulticlassJaccardIndex(len(spec.classes), ignore_index=IGNORED, **options)
    return MulticlassAccuracy(len(spec.classes), average="micro", **options)


def checked_score(value: float, spec: DataSpec) -> float:
    """A metric's value. Raises DataError for segmentation without any pixel that has a class."""
    if math.isnan(value):
        raise DataError(f"{spec.name}: {UNLABELLED}")
    return value


def batch_levels(sigma: Levels, spec: DataSpec, batch: Batch, rows: slice, seed: Tensor) -> Tensor:
    """Levels (B, M) of a batch that consists of these rows of a split."""
    size, modalities, device = len(batch), len(spec.modalities), batch.index.device
    if isinstance(sigma, str):
        return mixed_sigma(size, modalities, spec.max_sigma, seed, batch.index)
    levels = torch.as_tensor(sigma, dtype=torch.float32, device=device)
    return (levels[rows] if levels.dim() == 2 else levels).expand(size, modalities)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split | Dataset,
    spec: DataSpec,
    sigma: Levels = 0.0,
    *,
    kind: str | Tensor = "gaussian",
    weighting: bool = True,
    present: Sequence[str] | Sequence[bool] | Tensor | None = None,
    draw: int = 0,
    batch_size: int = 1024,
    workers: int = 0,
    precision: str = "32-true",
) -> Evaluation:
    """Run a model over a split, on the device of its parameters; its train or eval mode is restored.

    The noise depends only on the samples and `draw`: not on the model, the batch size or the call.

    Args:
        model: a MultimodalModel.
        split: a split of the data that `spec` describes; also a TensorDataset of the modalities and the target.
        sigma: one level, one per modality (M,), one per sample and modality (N, M), or "mix": each modality of a
            sample clean with probability 1/2, else uniform up to spec.max_sigma.
        kind: the kind of noise: a name, or an index into `udml_kernels.KINDS` for each sample, (N,) or (N, M).
        weighting: False weights all modalities equally.
        present: which modalities to use: their names, bools (M,), or per sample (N, M); what the split lacks is
            missing in any case. None: all that the split has.
        draw: the noise draw, from 0; validation during training uses the first config.validation_draws.
        batch_size: samples per forward pass.
        workers: processes that read the data.
        precision: 32-true, or bf16-mixed for autocast.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.
        DataError: if the split has no pixel with a class.
    """
    split = as_split(split, spec.modalities, "split")
    _check_levels(sigma, len(split), len(spec.modalities))
    here = _present(present, spec, len(split))
    first = next(iter(model.parameters()), torch.empty(0))
    device, training = first.device, model.training
    seed = evaluation_seed(draw, device)
    forward, kept = NoisyPass(spec), _Kept(spec, device)
    cast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    model.eval()
    try:
        start = 0
        for batch in make_loader(split, stripes(len(split), batch_size), workers):
            batch, rows = batch.to(device), slice(start, start + len(batch))
            if here is not None:
                given = here[rows].to(device)
                batch = replace(batch, present=given if batch.present is None else given & batch.present)
            levels = batch_levels(sigma, spec, batch, rows, seed)
            kinds = kind[rows].to(device) if isinstance(kind, Tensor) else kind
            with cast:
                output = forward(model, batch, levels, seed=seed, weighting=weighting, kind=kinds)
            kept.add(output, levels, batch)
            start = rows.stop
    finally:
        model.train(training)
    return kept.evaluation()


def _check_levels(sigma: Levels, size: int, modalities: int) -> None:
    if isinstance(sigma, str):
        good = sigma == MIX
    else:
        shape = tuple(torch.as_tensor(sigma).shape)
        good = shape in ((), (modalities,), (size, modalities))
    if not good:
        got = repr(sigma) if isinstance(sigma, str) else f"shape {shape}"
        raise ValueError(
            f"sigma: expected {MIX!r}, a number, or shape ({modalities},) or {size, modalities}, got {got}"
        )


def _present(present: Sequence[str] | Sequence[bool] | Tensor | None, spec: DataSpec, size: int) -> Tensor | None:
    """Names or bools as bool (N, M) on the CPU."""
    if present is None:
        return None
    names = spec.modalities
    expected = f"present: expected some of {', '.join(names)}, or bools of shape {(len(names),)} or {size, len(names)}"
    if isinstance(present, str):
        raise TypeError(f"{expected}, got {present!r}")
    values = list(present)
    if any(isinstance(value, str) for value in values):
        if not set(values) <= set(names):
            raise ValueError(f"{expected}, got {', '.join(map(str, values))}")
        values = [name in values for name in names]
    here = torch.as_tensor(values if not isinstance(present, Tensor) else present)
    if here.dtype != torch.bool or tuple(here.shape) not in ((len(names),), (size, len(names))):
        raise ValueError(f"{expected}, got {here.dtype} of shape {tuple(here.shape)}")
    return here.cpu().expand(size, len(names))


class _Kept:
    """The parts of the outputs that an Evaluation needs, on the CPU, and the scores so far."""

    def __init__(self, spec: DataSpec, device: torch.device):
        self.spec, self.locations = spec, spec.task == "segmentation"
        self.metric, *self.alone = (make_metric(spec, shared=False).to(device) for _ in (spec.name, *spec.modalities))
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, output: Any, sigma: Tensor, batch: Batch) -> None:
        rows, target = {"sigma": sigma}, batch.target
        logits = resized(output.logits.float(), target.shape[1:])
        self.metric.update(logits, target)
        for m, metric in enumerate(self.alone):
            here = slice(None) if batch.present is None else batch.present[:, m]
            if len(target[here]):
                metric.update(resized(output.unimodal[m][here].float(), target.shape[1:]), target[here])
        if not self.locations:
            rows |= {"logits": output.logits, "target": target}
        for name in ("weights", "noise", "dependency"):
            value = getattr(output, name)
            if value is not None:
                # Alpha is either one value for all samples, or each sample's own.
                value = value.expand(len(target), -1) if value.dim() == 1 else value
                rows[name] = value.flatten(2).mean(2) if value.dim() > 2 else value
        for name, value in rows.items():
            value = value.float() if value.is_floating_point() else value
            self.parts.setdefault(name, []).append(value.cpu())

    def evaluation(self) -> Evaluation:
        whole = {name: torch.cat(parts) for name, parts in self.parts.items()}
        names = self.spec.modalities
        alone = [float(metric.compute()) if metric.update_called else math.nan for metric in self.alone]
        means = {
            name: dict(zip(names, whole[name].double().mean(0).tolist(), strict=True)) if name in whole else None
            for name in ("dependency", "weights")
        }
        return Evaluation(
            checked_score(float(self.metric.compute()), self.spec),
            dict(zip(names, alone, strict=True)),
            means["dependency"],
            means["weights"],
            whole.get("logits"),
            whole.get("weights"),
            whole.get("noise"),
            whole.get("sigma", torch.empty(0, len(names))),
            whole.get("target"),
        )
