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
from torch.optim.lr_scheduler import LambdaLR

from .._arguments import restore_buffers, unsaved_buffers
from ..data.base import IGNORED, Batch, DataSpec
from ..losses import noise_error, resized
from ..models import MultimodalModel, Output, authors_noise
from ..schedule import Phase
from .config import TrainConfig
from .evaluate import checked_score, make_metric
from .forward import NoisyPass, has_levels
from .randomness import epoch_seed, evaluation_seed, step_seeds


class Means:
    """Means over the steps of an epoch, accumulated on the device and fetched once.

    `self.log` in every step costs a millisecond of host time for each value, together half of a small model's step.
    """

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
    """Trains a MultimodalModel; an epoch's phase and a step's random numbers follow from their number and the seed.

    Args:
        model: a MultimodalModel for the data's modalities and classes.
        spec: the spec of the data.
        config: the config of the run.
        saved: further contents of the checkpoints, in plain types.
        forward_pass: degrades a batch and runs the model on it; None for the spec's noise.
    """

    def __init__(
        self,
        model: MultimodalModel,
        spec: DataSpec,
        config: TrainConfig,
        saved: Mapping[str, Any] | None = None,
        forward_pass: NoisyPass | None = None,
    ):
        super().__init__()
        self.saved = dict(saved or {})
        self.model, self.spec, self.config, self.metric = model, spec, config, make_metric(spec, shared=True)
        if has_levels(model):
            spec = replace(spec, noise={name: authors_noise(noise) for name, noise in spec.noise.items()})
        self.forward_pass, self.means = forward_pass or NoisyPass(spec), Means()
        self.seeds = torch.empty(0, dtype=torch.int64)
        self._computed = self._compute
        if config.compile or config.cuda_graph:
            self._computed = torch.compile(self._compute, mode="reduce-overhead" if config.cuda_graph else None)
        # For on_after_backward, to which Lightning passes nothing.
        self._pending: tuple[Output, Tensor, Tensor] | None = None

    def phase_of(self, epoch: int) -> Phase:
        """What applies in an epoch. A method that trains only on clean data stays in the clean phase."""
        phase, _, _ = self.config.schedule.position(epoch)
        noisy = getattr(self.model, "noisy_training", True)
        return phase if noisy else replace(phase, noise=False, weighting=False)

    def on_train_start(self) -> None:
        scheduler = cast(LambdaLR, self.lr_schedulers())
        if scheduler.last_epoch != self.current_epoch:
            # Resumed from a checkpoint of an earlier version, which has no scheduler's state.
            scheduler.last_epoch = self.current_epoch - 1
            scheduler.step()

    def on_train_epoch_start(self) -> None:
        epoch, steps = self.current_epoch, int(self.trainer.num_training_batches)
        self.seeds = step_seeds(self.config.seed, epoch * steps, steps).to(self.device)
        # Not seed_everything, which a run would seed once: a resumed one could not go on with the same numbers.
        torch.manual_seed(epoch_seed(self.config.seed, epoch))

    def training_step(self, batch: Batch, step: int) -> Tensor:
        epoch = self.current_epoch
        if self.config.cuda_graph:
            # A graph's results are overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
        loss, measured = self.objective(
            batch, self.phase_of(epoch), self.seeds[step : step + 1], (epoch + 1) / self.config.epochs
        )
        with torch.no_grad():
            self.means.add({"loss": loss} | measured)
        return loss

    def objective(
        self, batch: Batch, phase: Phase, seed: Tensor, epoch_fraction: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch in a phase, and what is logged beside it, without fetching anything from the device.

        Args:
            seed: int64 (1,), for all that the step draws.
            epoch_fraction: the fraction of the training that is over, in [0, 1].
        """
        output, loss, measured = self._computed(batch, phase, seed, epoch_fraction)
        self._pending = output, batch.target, seed
        return loss, measured

    def _compute(
        self, batch: Batch, phase: Phase, seed: Tensor, epoch_fraction: float
    ) -> tuple[Output, Tensor, dict[str, Tensor]]:
        output, sigma = self.forward_pass.in_phase(self.model, batch, phase, seed)
        with torch.autocast(self.device.type, enabled=False):
            output = as_float32(output)
            terms = self.model.loss(output, batch.target, epoch_fraction=epoch_fraction, sigma=sigma)
            loss = cast(Tensor, sum(terms.values()))
            with torch.no_grad():
                measured = self.measures(terms, output, batch.target, sigma)
        return output, loss, measured

    def on_after_backward(self) -> None:
        assert self._pending is not None
        output, target, seed = self._pending
        self._pending = None
        self.model.after_backward(output, target, seed=seed)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # The Trainer's gradient_clip_val refuses fused optimizers in mixed precision.
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.config.clip)

    def validation_step(self, batch: Batch, step: int) -> None:
        """Score clean data in the clean phase, afterwards draws of the mix of levels, the same in every epoch."""
        phase = self.phase_of(self.current_epoch)
        for draw in range(self.config.validation_draws if phase.noise else 1):
            output, _ = self.forward_pass.in_phase(self.model, batch, phase, evaluation_seed(draw, self.device))
            self.metric.update(resized(output.logits.float(), batch.target.shape[1:]), batch.target)

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

    def epoch_means(self) -> dict[str, float]:
        """The epoch's numbers over all processes; only now they are fetched from the device."""
        row = self.means.fetch()
        if "noise_mse" in row:
            row["noise_rmse"] = math.sqrt(row.pop("noise_mse"))
        score = checked_score(float(self.metric.compute()), self.spec)
        self.metric.reset()
        # The loggers get the whole row, from `History`.
        self.log_dict({"loss": row["loss"], "validation": score}, prog_bar=True, logger=False)
        return row | {f"validation_{score_name(self.spec)}": score}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also save the state that the next step needs and no state dict holds, and the run's description."""
        checkpoint |= self.saved | {"buffers": unsaved_buffers(self.model), "config": self.config.settings()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_buffers(self.model, checkpoint["buffers"])

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LambdaLR]]:
        c, idle = self.config, idle_biases(self.model)
        parameters = [p for p in self.model.parameters() if p.requires_grad and p not in idle]
        options: dict[str, Any] = {"lr": c.learning_rate, "weight_decay": c.weight_decay, "fused": True}
        optimizer: torch.optim.Optimizer
        if c.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, momentum=0.9, **options)
            # Fused SGD needs a momentum buffer for every parameter, but some get their first gradient in a later phase.
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in parameters})
        else:
            optimizer = torch.optim.AdamW(parameters, **options)
        # Lightning also steps after the last epoch.
        return [optimizer], [LambdaLR(optimizer, lambda epoch: c.schedule.learning_rate(1.0, min(epoch, c.epochs - 1)))]


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
