"""What all methods share: an encoder and a pointwise embedding for each modality, a fusion, the objective."""

import inspect
import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from udml_kernels import checks

from .._arguments import Recorded
from ..fusion import Weigh, make_fusion
from ..layers import InputGuard, UncertaintyWeighting
from ..layers._statistics import resting
from ..losses import IGNORED, LossWeights, resized, udml_terms
from .embedding import Embedding, LogvarBranch, NormalEmbedding, PointEmbedding, input_statistics, sample_all
from .features import channels_last, check_features
from .output import Output, Step
from .widths import STD_MAX, encoder_widths, std_limits

_Rows = TypeVar("_Rows", Tensor, Tensor | None)
TASKS = ("classification", "segmentation")


class MultimodalModel(Recorded, nn.Module):
    """Encoders, each followed by a pointwise embedding (linear map, BatchNorm); pooling in classification; a fusion.

    The methods differ in their weighting, their objective and their changes to gradients; encoders, embeddings
    and fusion are the same, so that the methods can be compared.

    The output of a broken sensor (NaN, infinity, one value everywhere, many times the size known from training: see
    `InputGuard`) is treated as missing, in training and in evaluation: it has weight 0 and affects nothing else. In
    training the encoder gets another sample's input instead of a missing one, so that BatchNorm sees only inputs of the
    usual kind; if a modality is missing in the whole batch of any process, running statistics are not updated.

    Args:
        encoders: by modality name, 1 to 16; each returns features (B, C_in, ...), in classification with any further
            dimensions, where (B, C_in, T, H, W) are T frames; in segmentation (B, C_in, h, w), the same for all.
        num_classes: K.
        fusion: concat, sum, gated, film or attention.
        task: "classification" or "segmentation". In segmentation nothing is pooled: every location is weighted.
        width: C_in, one for all or a mapping by name; None reads it from each encoder's `out_features` or else its last
            linear, convolution or norm layer. All embeddings have the largest of these widths.
        gamma: weight of the unimodal losses.
        beta: weight of the KL, in methods that have one.
        lam: weight of the noise estimator's loss, in methods that have one.
        std_max: upper limit of the embeddings' standard deviation, if they are distributions: one for all, or by name
            (names left out get the default); None for no limit. The default is far above what inputs of the usual size
            give, and far below overflow.
        input_limit: `limit` of the `InputGuard`; None for no guard and no protection from broken sensors.

    Attributes:
        noisy_training: whether the method is meant to be trained on degraded inputs.
        probabilistic: whether the embeddings are distributions.
        authors_heads: whether the authors' fusion is used where theirs is a different network.
        logvar_branch: how the embeddings' log variances are formed, if they are distributions; None for a linear layer.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.
    """

    noisy_training = True
    probabilistic = False
    authors_heads = False
    logvar_branch: LogvarBranch | None = None

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        fusion: str = "concat",
        task: str = "classification",
        width: int | Mapping[str, int] | None = None,
        gamma: float = 1.0,
        beta: float = 1e-3,
        lam: float = 0.1,
        std_max: float | Mapping[str, float | None] | None = STD_MAX,
        input_limit: float | None = 6.0,
    ):
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        self.widths = encoder_widths(encoders, width)
        self.num_classes, self.task, self.width = num_classes, task, max(self.widths.values())
        self.encoders = nn.ModuleDict(encoders)
        limits = std_limits(encoders, std_max)
        self.heads = nn.ModuleDict({name: self._embedding(c, limits[name]) for name, c in self.widths.items()})
        widths, spatial_dims = [self.width] * len(encoders), 2 if task == "segmentation" else 0
        self.fusion = make_fusion(fusion, widths, num_classes, spatial_dims=spatial_dims, authors=self.authors_heads)
        self.guard = None if input_limit is None else InputGuard(len(encoders), input_limit)
        self.weighting = UncertaintyWeighting()
        self.loss_weights = LossWeights(
            *(_loss_weight(n, v) for n, v in (("gamma", gamma), ("beta", beta), ("lam", lam)))
        )
        self._channels_last = frozenset(name for name, encoder in encoders.items() if channels_last(encoder))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities' names, in the order of M."""
        return tuple(self.encoders)

    @classmethod
    def options(cls) -> set[str]:
        """The names of the keyword arguments that the method takes."""
        signatures = (inspect.signature(c.__init__) for c in cls.__mro__ if issubclass(c, MultimodalModel))
        return {p.name for s in signatures for p in s.parameters.values() if p.kind is p.KEYWORD_ONLY}

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        sigma: Tensor | None = None,
        present: Tensor | None = None,
        weighting: bool = True,
        seed: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Output:
        """Classify (noisy) inputs.

        Args:
            inputs: by modality name, (B, ...).
            sigma: the noise's true level (B, M), for the prior and as the estimator's target; None if unknown.
            present: bool (B, M), False where a modality is missing, whatever its input holds; None: all present.
            weighting: False weights all modalities equally, in methods that weight features.
            seed: int64 (1,), the step's seed (`udml_kernels.draw_seed`); used only in training.
            sample_ids: int64 (B,), the samples' identities, so that their noise does not depend on the batch.

        Raises:
            ValueError: naming the argument, what was given and what is expected.
        """
        self._check_shapes(inputs, sigma, present)
        if self.guard is not None:
            present = self.guard([inputs[name] for name in self.modalities], present)
        if present is not None and sigma is not None:
            sigma = torch.where(present, sigma, 0)
        output = self._forward(Step(inputs, sigma, present, weighting, seed, sample_ids))
        if self.task == "segmentation":
            output.logits = resized(output.logits, next(iter(inputs.values())).shape[-2:])
        return output

    def loss(
        self, output: Output, target: Tensor, *, epoch_fraction: float = 1.0, sigma: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The objective's terms by name, weighted; the objective is their sum.

        Args:
            output: the output of `forward`, in training.
            target: int64 (B,), or (B, H, W) with 255 where a pixel has no class.
            epoch_fraction: the fraction of the training that is over, in [0, 1].
            sigma: the true levels (B, M), for objectives that compare with them; those here already did in `forward`.
        """
        return udml_terms(
            output.logits,
            output.unimodal,
            output.kl,
            output.noise_loss,
            target,
            self.loss_weights,
            present=output.present,
        )

    def after_backward(self, output: Output, target: Tensor, *, seed: Tensor) -> None:
        """Change the gradients before they are clipped and used; arguments as for `loss` and `forward`."""

    def check(self, inputs: Mapping[str, Tensor], target: Tensor, present: Tensor | None = None) -> None:
        """Raise ValueError if data does not fit the model.

        This reads every label: call it once for a data set, not in every step. Arguments as for `forward` and `loss`.
        """
        self._check_shapes(inputs, None, present)
        dims = 3 if self.task == "segmentation" else 1
        batch = len(next(iter(inputs.values())))
        if target.dtype != torch.int64 or target.dim() != dims or len(target) != batch:
            expected = f"int64 of {dims} dimension{'s'[: dims - 1]}, {batch} samples"
            raise ValueError(f"target: expected {expected}, got {target.dtype} of shape {tuple(target.shape)}")
        wrong = (target < 0) | (target >= self.num_classes)
        if self.task == "segmentation":
            wrong &= target != IGNORED
        if bool(wrong.any()):
            labels = ", ".join(map(str, target[wrong].unique()[:5].tolist()))
            raise ValueError(f"target: expected labels in [0, {self.num_classes}), got {labels}")

    def branch(self, name: str) -> list[nn.Parameter]:
        """The parameters that belong to one modality: those of its encoder and its embedding."""
        return [*self.encoders[name].parameters(), *self.heads[name].parameters()]

    def embed(self, step: Step, prior_var: Tensor | float = 1.0) -> list[Embedding]:
        """Encode and embed each modality; prior_var, a number or (B, M), is the variance of the KL's prior."""
        every_features: list[Tensor] = []
        results: list = []
        absent = ~_everywhere(step.present) if self.training and step.present is not None else None
        for m, (name, encoder) in enumerate(self.encoders.items()):
            here, x, head = None if step.present is None else step.present[:, m], step.inputs[name], self.heads[name]
            x = _kept(x, here) if absent is None or here is None else _stood_in(x, here, absent[m])
            with resting(encoder, head, where=not step.batch if absent is None else absent[m]):
                features = encoder(x)
                self._check_features(features, name, x)
                every_features.append(features)
                results.append(
                    self._moments(head, features, x) if isinstance(head, NormalEmbedding) else head(features)
                )
        embeddings = results
        if self.probabilistic:
            heads = [head for head in self.heads.values() if isinstance(head, NormalEmbedding)]
            random: dict = {"seed": step.seed, "sample_ids": step.sample_ids}
            embeddings = sample_all(heads, every_features, results, prior_var, **random)
        for m, here in enumerate([] if step.present is None else step.present.unbind(1)):
            e = embeddings[m]
            embeddings[m] = Embedding(_kept(e.features, here), e.std, e.logvar, _kept(e.kl, here))
        sizes = [tuple(e.features.shape[2:]) for e in embeddings]
        if len(set(sizes)) > 1:
            got = ", ".join(f"{name} {size}" for name, size in zip(self.encoders, sizes, strict=True))
            raise ValueError(f"encoders: expected features of one size (h, w) in segmentation, got {got}")
        return embeddings

    def weigh(self, step: Step, noise: Tensor | None = None, dependency: Tensor | None = None) -> Weigh:
        """The function by which a fusion weights M tensors: by noise and dependency; equally without noise."""

        def weigh(tensors, mode):
            return self.weighting(tensors, noise, dependency, mask=step.present, mode=mode)

        return weigh

    def _forward(self, step: Step) -> Output:
        features = [e.features for e in self.embed(step)]
        logits, unimodal, weights = self.fusion(features, self.weigh(step), step.present)
        return Output(logits, unimodal, weights, features=features, present=step.present)

    @staticmethod
    def _moments(head: NormalEmbedding, features: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return head.moments(features, input_statistics(x) if head.branch.statistics else None)

    def _embedding(self, fan_in: int, std_max: float | None) -> nn.Module:
        pool = self.task == "classification"
        if self.probabilistic:
            return NormalEmbedding(fan_in, self.width, pool=pool, std_max=std_max, branch=self.logvar_branch)
        return PointEmbedding(fan_in, self.width, pool=pool)

    def _check_shapes(self, inputs: Mapping[str, Tensor], sigma: Tensor | None, present: Tensor | None) -> None:
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs: expected tensors by modality name, got {type(inputs).__name__}")
        if set(inputs) != set(self.encoders):
            raise ValueError(
                f"inputs: expected the names {', '.join(self.encoders)}, got {', '.join(inputs) or 'none'}"
            )
        batch = len(inputs[self.modalities[0]])
        for name, x in inputs.items():
            if len(x) != batch:
                raise ValueError(f"inputs[{name!r}]: expected {batch} samples, as the others have, got {len(x)}")
        shape = batch, len(self.encoders)
        if present is not None:
            checks.tensor_of("present", present, "a bool tensor, True where a modality is present", (torch.bool,))
            checks.exact_shape("present", present, shape)
        if sigma is not None:
            checks.tensor_of("sigma", sigma, "a floating tensor", checks.FLOATS)
            checks.exact_shape("sigma", sigma, shape)
            checks.all_values("sigma", sigma, "levels that are not negative", lambda v: not v < 0)

    def _check_features(self, features: Tensor, name: str, x: Tensor) -> None:
        segmenting, last = self.task == "segmentation", name in self._channels_last
        check_features(features, name, self.widths[name], x, segmenting=segmenting, last=last)


def _loss_weight(name: str, value: float) -> float:
    return checks.number(name, value, "a finite number that is not negative", lambda v: 0 <= v < math.inf)


def _kept(x: _Rows, here: Tensor | None) -> _Rows:
    """x (B, ...), with 0 in the rows where `here` (B,) is False."""
    return x if x is None or here is None else torch.where(here.reshape(-1, *[1] * (x.dim() - 1)), x, 0)


def _stood_in(x: Tensor, here: Tensor, absent: Tensor) -> Tensor:
    """x (B, ...), with absent rows replaced by rows that are here; 0 if there are none."""
    if not len(x):
        return x
    present_first = here.argsort(stable=True, descending=True)
    rows = torch.arange(len(x), device=x.device)
    donors = present_first[rows % here.sum().clamp(min=1)]
    return torch.where(absent, 0, x.index_select(0, torch.where(here, rows, donors)))


def _everywhere(present: Tensor) -> Tensor:
    """Bool (M,): the modalities that are present in some sample of every process's batch."""
    some = present.any(0)
    if dist.is_available() and dist.is_initialized():
        least = some.to(torch.uint8)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        some = least.bool()
    return some
