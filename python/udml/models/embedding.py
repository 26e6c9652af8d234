"""One modality's embedding: a pointwise map of its features to a point or to a normal distribution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import udml_kernels

from ..layers import ProbabilisticHead


@dataclass
class Embedding:
    """An embedding of B samples with C channels; *sp is the features' (h, w), or () where they are pooled.

    Attributes:
        features: (B, C, *sp).
        std: (B, C, *sp), of a distribution; its mean over the locations if pooled.
        logvar: (B, C, ...), of a distribution at all locations.
        kl: (B,), of a distribution to the prior, summed over channels and locations, mean over frames; nats.
    """

    features: Tensor
    std: Tensor | None = None
    logvar: Tensor | None = None
    kl: Tensor | None = None


class PointEmbedding(nn.Module):
    """The mean of a `NormalEmbedding` without its distribution: `mu` is Sequential(linear layer, BatchNorm).

    Args:
        in_features, out_features: channels C_in and C.
        pool: whether the features are pooled (mean over the locations).
    """

    def __init__(self, in_features: int, out_features: int, *, pool: bool):
        super().__init__()
        self.mu = nn.Sequential(nn.Linear(in_features, out_features), nn.BatchNorm1d(out_features))
        self.pool = pool

    def forward(
        self,
        features: Tensor,
        prior_var: Tensor | float = 1.0,
        *,
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Embedding:
        """Features (B, C_in, ...) to their embedding; arguments that only a distribution needs are ignored."""
        z = _locations(self.mu(_rows(features)), features)
        return Embedding(z.mean(2) if self.pool else z.reshape(*z.shape[:2], *features.shape[2:]))


@dataclass(frozen=True)
class LogvarBranch:
    """How a `NormalEmbedding` forms its log variance.

    Attributes:
        gradient: the factor by which gradients pass from the log variance into the encoder's features; 0 detaches them.
        statistics: whether it also reads the statistics of the raw input, `input_statistics`.
        hidden: width of a hidden layer with GELU; 0 for a linear map.
    """

    gradient: float = 1.0
    statistics: bool = False
    hidden: int = 0


STATISTICS = 4


def input_statistics(x: Tensor) -> Tensor:
    """Logarithms of four sizes of each input (B, ...), (B, 4), float32 or wider, without gradient.

    The root mean square and the mean absolute value of the elements, and of the differences of neighbours along the
    last dimension: noise raises all four, and the last two also where the signal is large but smooth.
    """
    x = widened(x.detach())
    parts = x.flatten(1), x.diff(dim=-1).flatten(1) if x.shape[-1] > 1 else x.flatten(1)
    # A root mean square is the norm of order 2 over sqrt(n), a mean absolute value that of order 1 over n.
    sizes = [
        torch.linalg.vector_norm(rows, order, dim=1) * max(rows.shape[1], 1) ** (-1 / order)
        for rows in parts
        for order in (2, 1)
    ]
    return torch.stack(sizes, 1).clamp(min=1e-6).log()


class NormalEmbedding(ProbabilisticHead):
    """A `ProbabilisticHead` at each location of (B, C_in, ...), with any number of dimensions.

    The head's linear layers get one row per location, which makes them 1x1 convolutions.

    Args:
        in_features, out_features: channels C_in and C.
        pool: whether features and std are pooled (mean over the locations).
        std_max: upper limit of the standard deviation, or None.
        kl_epsilon: the KL's logarithm is log((std^2 + kl_epsilon) / prior_var).
        sample_map: sample every location and average, instead of sampling the mean; the distribution is the same.
        branch: how the log variance is formed; None for the head's own linear layer and BatchNorm.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        pool: bool,
        std_max: float | None = None,
        kl_epsilon: float = 0.0,
        sample_map: bool = False,
        branch: LogvarBranch | None = None,
    ):
        super().__init__(in_features, out_features, std_max=std_max)
        self.pool, self.kl_epsilon, self.sample_map = pool, kl_epsilon, sample_map
        self.branch = branch or LogvarBranch()
        if self.branch.statistics or self.branch.hidden:
            read, hidden = in_features + STATISTICS * self.branch.statistics, self.branch.hidden
            layers = [nn.Linear(read, hidden), nn.GELU(), nn.Linear(hidden, out_features)] if hidden else []
            self.logvar = nn.Sequential(*(layers or [nn.Linear(read, out_features)]), nn.BatchNorm1d(out_features))

    # The head's parameters and branches, but another return type.
    def forward(  # type: ignore[override]
        self,
        features: Tensor,
        prior_var: Tensor | float = 1.0,
        *,
        statistics: Tensor | None = None,
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> Embedding:
        """Features (B, C_in, ...) to their embedding; arguments as for `ProbabilisticHead.forward`.

        The dimensions of (B, C_in, T, H, W) are frames and their locations: the KL is the mean over the frames.
        `statistics` are the raw input's, if the branch reads them.
        """
        mu, logvar = self.moments(features, statistics)
        random: dict[str, Any] = {"seed": seed, "stream": stream, "sample_ids": sample_ids}
        z, std, kl = udml_kernels.reparameterize(mu, logvar, prior_var, **self.options(), **random)
        return self.embedding(features, logvar, z, std, kl)

    def moments(self, features: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (B, C_in, ...) to mu and logvar, (B, C, L) for L locations."""
        mu, logvar = self.distribution(_rows(features), statistics)
        return _locations(mu, features), _locations(logvar, features)

    def distribution(self, features: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows of features (N, C_in) to the mean and log variance of the normal, (N, C) each.

        `statistics` (B, 4) are the raw input's, if the branch reads them; each sample has N / B rows.
        """
        return self.mu(features), self.logvar(self._read(features, statistics))

    def _read(self, rows: Tensor, statistics: Tensor | None) -> Tensor:
        """What the log variance is formed from, one row per location, of rows (B * L, C_in)."""
        factor = self.branch.gradient
        if factor != 1:
            rows = rows.detach() if factor == 0 else torch.lerp(rows.detach(), rows, factor)
        if not self.branch.statistics:
            return rows
        if statistics is None:
            raise ValueError("statistics: expected the raw input's (see input_statistics), got None")
        samples, numbers = statistics.shape
        repeated = statistics.unsqueeze(1).expand(-1, rows.shape[0] // max(samples, 1), -1).reshape(-1, numbers)
        return torch.cat([rows, repeated.to(rows.dtype)], 1)

    def options(self) -> dict[str, Any]:
        """The arguments of `udml_kernels.reparameterize` that the head decides."""
        pool = self.pool and not self.sample_map
        return {"std_max": self.std_max, "sample": self.training, "pool": pool, "pool_std": self.pool}

    def embedding(self, features: Tensor, logvar: Tensor, z: Tensor, std: Tensor, kl: Tensor) -> Embedding:
        """The embedding from the sample z of `moments`, its std and its KL."""
        if self.kl_epsilon:
            # log((s + e) / s) with s = std^2 = exp(logvar), which may be too small to divide by.
            log_s = logvar.to(kl.dtype)
            if self.std_max is not None:
                log_s = log_s.clamp(max=2 * math.log(self.std_max))
            kl = kl - 0.5 * F.softplus(math.log(self.kl_epsilon) - log_s).flatten(1).sum(1)
        if features.dim() == 5:
            kl = kl / features.shape[2]
        shape = (*z.shape[:2], *features.shape[2:])
        logvar = logvar.reshape(shape)
        if self.pool:
            return Embedding(z.mean(2) if self.sample_map else z, std, logvar, kl)
        return Embedding(z.reshape(shape), std.reshape(shape), logvar, kl)

    def std_of(self, logvar: Tensor) -> Tensor:
        """The standard deviation at each location, float32 or wider."""
        std = (widened(logvar) / 2).exp()
        return std if self.std_max is None else std.clamp(max=self.std_max)


def sample_all(
    heads: Sequence[NormalEmbedding],
    features: Sequence[Tensor],
    moments: Sequence[tuple[Tensor, Tensor]],
    prior_var: Tensor | float,
    *,
    seed: Tensor | None = None,
    sample_ids: Tensor | None = None,
) -> list[Embedding]:
    """The embeddings of M modalities, as their heads give them with the streams 0 .. M - 1, sampled in one call.

    Args:
        heads: M heads.
        features: their inputs.
        moments: mu and logvar of each.
        prior_var: a number, or (B, M).
    """
    mu, logvar = map(list, zip(*moments, strict=True))
    options = [head.options() for head in heads]
    if all(o == options[0] for o in options) and len({t.dtype for t in mu}) == 1:
        z, std, kl = udml_kernels.reparameterize(mu, logvar, prior_var, **options[0], seed=seed, sample_ids=sample_ids)
        drawn = list(zip(z, std, kl.unbind(1), strict=True))
    else:
        drawn = []
        for m, each in enumerate(options):
            prior = prior_var[:, m] if isinstance(prior_var, Tensor) else prior_var
            random: dict[str, Any] = {"seed": seed, "stream": m, "sample_ids": sample_ids}
            drawn.append(udml_kernels.reparameterize(mu[m], logvar[m], prior, **each, **random))
    return [head.embedding(f, v, *d) for head, f, v, d in zip(heads, features, logvar, drawn, strict=True)]


def widened(x: Tensor) -> Tensor:
    """x in float32, or in float64 if x is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(features: Tensor) -> Tensor:
    """(B, C, ...) to (B * L, C), one row per location."""
    return features if features.dim() == 2 else features.flatten(2).mT.flatten(0, 1)


def _locations(rows: Tensor, features: Tensor) -> Tensor:
    """(B * L, C) to (B, C, L), with B and L taken from the features."""
    return rows.unflatten(0, (features.shape[0], features.shape[2:].numel())).mT
