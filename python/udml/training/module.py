"""The training step as a LightningModule."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .._arguments import restore_buffers, unsaved_buffers
from ..data.base import IGNORED, Batch, DataSpec
from ..losses import noise_error, resized
from ..models import MultimodalModel, Output, authors_levels, authors_noise
from ..schedule import PHASES
from .config import TrainConfig
from .evaluate import NoisyPass, make_metric, score_of
from .randomness import epoch_seed, evaluation_seed, mixed_sigma, step_seeds


class Means:
    """Means over the steps of an epoch, accumulated on the device and fetched once."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.total: Tensor | None = None
        self.steps = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's scalars; the names are the same in all steps of an epoch."""
        row = torch.stack([value.detach().float() for value in values.values()])
        self.names, self.steps = tuple(values), self.steps + 1
        self.total = row if self.total is None else self.total + row

    def fetch(self) -> dict[str, float]:
        """Return the means over all processes, and reset."""
        if self.total is None:
            return {}
        mean = self.total / self.steps
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        row = dict(zip(self.names, mean.tolist(), strict=True))
        Means.__init__(self)
        return row


class TrainingModule(LightningModule):
    """Trains a MultimodalModel; `Progression` sets the phase, and a step's random numbers follow from (seed, step).

    Args:
        model: a MultimodalModel for the data's modalities and classes.
        spec: the spec of the data.
        config: the config of the run.
        saved: further contents of the checkpoints, in plain types.

    Attributes:
        forward_pass: degrades a batch and runs the model on it: a `NoisyPass` or a compatible callable.
        phase: the phase of the current epoch.
        means: the measurements of the current epoch.
    """

    def __init__(
        self, model: MultimodalModel, spec: DataSpec, config: TrainConfig, saved: Mapping[str, Any] | None = None
    ):
        super().__init__()
        self.saved = dict(saved or {})
        self.model, self.spec, self.config = model, spec, config
        # Whether the model's sigma is the authors' level, which is 1 for clean data.
        self.levels = getattr(getattr(model, "settings", None), "levels", False)
        degraded = replace(spec, noise={n: authors_noise(v) for n, v in spec.noise.items()}) if self.levels else spec
        self.forward_pass, self.metric, self.means = NoisyPass(degraded), make_metric(spec, shared=True), Means()
        self.phase, self.epoch_fraction = PHASES[0], 0.0
        self.seeds = torch.empty(0, dtype=torch.int64)
        self._pending: tuple[Output, Tensor, Tensor] | None = None

    def on_train_epoch_start(self) -> None:
        epoch, steps = self.current_epoch, int(self.trainer.num_training_batches)
        self.seeds = step_seeds(self.config.seed, epoch * steps, steps).to(self.device)
        torch.manual_seed(epoch_seed(self.config.seed, epoch))
        self.epoch_fraction = (epoch + 1) / self.config.epochs

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """The objective of one batch, without fetching anything from the device."""
        seed = self.seeds[step : step + 1]
        output, sigma = self.perturbed(batch, seed)
        with torch.autocast(self.device.type, enabled=False):
            output = as_float32(output)
            terms = self.model.loss(output, batch.target, epoch_fraction=self.epoch_fraction, sigma=sigma)
            loss = cast(Tensor, sum(terms.values()))
            with torch.no_grad():
                self.means.add({"loss": loss} | self.measures(terms, output, batch.target, sigma))
        self._pending = output, batch.target, seed
        return loss

    def on_after_backward(self) -> None:
        assert self._pending is not None
        output, target, seed = self._pending
        self._pending = None
        self.model.after_backward(output, target, seed=seed)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.config.clip)

    def validation_step(self, batch: Batch, step: int) -> None:
        """Score clean data in the clean phase, afterwards draws of the mix of levels, the same in every epoch."""
        for draw in range(self.config.validation_draws if self.phase.noise else 1):
            output, _ = self.perturbed(batch, evaluation_seed(draw, self.seeds.device))
            self.metric.update(resized(output.logits.float(), batch.target.shape[1:]), batch.target)

    def perturbed(self, batch: Batch, seed: Tensor) -> tuple[Output, Tensor | None]:
        """The output under the phase's noise, and its levels (B, M): None in the clean phase, except with `levels`."""
        sigma: Tensor | None = None
        kind: str | Tensor = "gaussian"
        shape = len(batch), len(self.spec.modalities)
        if self.levels:
            drawn = authors_levels(*shape, seed, batch.index)
            # The authors' estimator also learns in the clean phase, where the level is 1.
            sigma, kind = (drawn.sigma, drawn.kind) if self.phase.noise else (torch.zeros_like(drawn.sigma), kind)
        elif self.phase.noise:
            sigma = mixed_sigma(*shape, self.spec.max_sigma, seed, batch.index)
        weighting = self.phase.weighting
        return self.forward_pass(self.model, batch, sigma, seed=seed, weighting=weighting, kind=kind), sigma

    def measures(self, terms: Mapping[str, Tensor], output: Output, target: Tensor, sigma: Tensor | None) -> dict:
        """What is logged in addition to the loss: scalars on the device."""
        right = resized(output.logits, target.shape[1:]).argmax(1) == target
        measured = {f"loss_{name}": term for name, term in terms.items()}
        measured["accuracy"] = (
            right.sum() / (target != IGNORED).sum().clamp(min=1) if right.dim() > 1 else right.float().mean()
        )
        for name, value in (("weight", output.weights), ("alpha", output.dependency)):
            if value is not None:
                mean = value.movedim(1, 0).flatten(1).mean(1) if value.dim() > 1 else value
                measured |= {f"{name}_{m}": v for m, v in zip(self.spec.modalities, mean.unbind(), strict=True)}
        if output.noise is not None and sigma is not None:
            error = output.noise_loss
            measured["noise_mse"] = noise_error(output.noise, sigma, output.present) if error is None else error
        return measured

    def fetch(self) -> dict[str, float]:
        """The epoch's numbers; the only time that they are fetched from the device."""
        row = self.means.fetch()
        if "noise_mse" in row:
            row["noise_rmse"] = math.sqrt(row.pop("noise_mse"))
        row[f"validation_{score_name(self.spec)}"] = score_of(self.metric, self.spec)
        self.metric.reset()
        return row

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the state that the next step needs and no state dict holds."""
        checkpoint |= self.saved | {"buffers": unsaved_buffers(self.model)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_buffers(self.model, checkpoint["buffers"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        c, idle = self.config, idle_biases(self.model)
        parameters = [p for p in self.model.parameters() if p.requires_grad and p not in idle]
        if c.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=c.learning_rate, momentum=0.9, weight_decay=c.weight_decay, fused=True
            )
        return torch.optim.AdamW(parameters, lr=c.learning_rate, weight_decay=c.weight_decay, fused=True)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch if batch.index.device == device else batch.to(device)


def idle_biases(model: nn.Module) -> set[Tensor]:
    """Biases that a following BatchNorm cancels.

    Their gradient consists of rounding errors, which Adam turns into full steps; the running mean lags behind, so that
    in evaluation two runs that round differently (measured: one process and two) differed by 1e-3 of the logits.
    """
    pairs = [pair for m in model.modules() if isinstance(m, nn.Sequential) for pair in pairwise(m)]
    return {
        layer.bias
        for layer, norm in pairs
        if isinstance(norm, _BatchNorm) and isinstance(layer, nn.Linear | _ConvNd) and layer.bias is not None
    }


def score_name(spec: DataSpec) -> str:
    """The name of an Evaluation's score: accuracy, or iou for segmentation."""
    return "iou" if spec.task == "segmentation" else "accuracy"


def as_float32(output: Output) -> Output:
    """An Output with its tensors of lower precision converted to float32."""
    values = {f.name: getattr(output, f.name) for f in fields(output)}
    low: dict[str, Any] = {
        n: v.float() for n, v in values.items() if isinstance(v, Tensor) and v.dtype in (torch.bfloat16, torch.half)
    }
    return replace(output, **low) if low else output
