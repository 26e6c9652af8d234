"""Fused counterparts ("twins") of plain UDML modules, on their own layers and called like them, for `udml.patch`."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import udml_kernels

from .fusion import ConcatFusion, FusionOutput, Weigh
from .layers import ProbabilisticHead

_OUTPUTS = ("z", "mu", "logvar", "std", "pooled_std", "kl")
_ACTIVATIONS = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}
_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def probabilistic_head(
    head: nn.Module,
    *,
    mu: str = "mu",
    logvar: str = "logvar",
    outputs: str | Sequence[str] = ("z", "pooled_std", "kl"),
    std_max: float | None = None,
) -> ProbabilisticHead:
    """A `ProbabilisticHead` built on the two branches of a plain head, which may be any modules.

    Args:
        head: a module whose parameters are all in its two branches.
        mu, logvar: the names of the branches in the head.
        outputs: what the plain head returns, of z (B, C, ...), mu, logvar and std of the same shape, pooled_std (B, C)
            and kl (B,): several names for a tuple, or one name for a tensor. The default is `ProbabilisticHead`'s.
        std_max: upper limit of the standard deviation, or None.

    Its `forward` takes the arguments of `ProbabilisticHead.forward`; only the features are required.

    Raises:
        ValueError: for a branch that does not exist, parameters outside the branches, or unknown outputs.
    """
    children = dict(head.named_children())
    missing = [name for name in (mu, logvar) if name not in children]
    if missing:
        raise ValueError(f"mu, logvar: expected two of {', '.join(children) or 'no modules'}, got {', '.join(missing)}")
    beside = [name for name, _ in head.named_parameters() if name.partition(".")[0] not in (mu, logvar)]
    if beside:
        raise ValueError(f"head: expected parameters in {mu} and {logvar} alone, got {', '.join(beside)}")
    unknown = [name for name in ([outputs] if isinstance(outputs, str) else outputs) if name not in _OUTPUTS]
    if unknown:
        raise ValueError(f"outputs: expected some of {', '.join(_OUTPUTS)}, got {', '.join(unknown)}")
    return _Head(children[mu], children[logvar], (mu, logvar), outputs, std_max)


class _Head(ProbabilisticHead):
    def __init__(self, mu, logvar, names, outputs, std_max):
        nn.Module.__init__(self)
        # Registered under the old names, which state dicts contain.
        for name, branch in zip(names, (mu, logvar), strict=True):
            self.add_module(name, branch)
        self.names, self.outputs, self.std_max = names, outputs, std_max

    def distribution(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = (getattr(self, name)(features) for name in self.names)
        return mu, logvar

    def forward(self, features, prior_var=1.0, *, seed=None, stream=0, sample_ids=None):
        mu, logvar = self.distribution(features)
        at_locations = "std" in self.outputs
        z, std, kl = udml_kernels.reparameterize(
            mu,
            logvar,
            prior_var,
            std_max=self.std_max,
            sample=self.training,
            pool_std=not at_locations,
            seed=seed,
            stream=stream,
            sample_ids=sample_ids,
        )
        given = {"z": z, "mu": mu, "logvar": logvar, "pooled_std": std, "kl": kl}
        if at_locations:
            given |= {"std": std.to(logvar.dtype), "pooled_std": std.flatten(2).mean(2) if std.dim() > 2 else std}
        if isinstance(self.outputs, str):
            return given[self.outputs]
        return tuple(given[name] for name in self.outputs)


def noise_estimator(net: nn.Sequential) -> nn.Sequential:
    """The twin of one noise estimator, Sequential(Linear, activation, Dropout, Linear); the middle two are optional.

    It returns what the Sequential does, o (..., O), and not the noise exp(o / 2), which the plain code computes from
    it. Nor does it detach its input, std (..., D). It also takes `seed` and `sample_ids`, for dropout.
    Like the op it is exact for o above -174 (float32's smallest exp(o / 2)).

    Raises:
        ValueError: for other layers, activations other than relu, the exact gelu and silu, or a missing bias.
    """
    layers = list(net) if isinstance(net, nn.Sequential) else [net]
    inner = layers[1:-1]
    activation = "identity"
    if inner and type(inner[0]) in _ACTIVATIONS and getattr(inner[0], "approximate", "none") == "none":
        activation = _ACTIVATIONS[type(inner.pop(0))]
    dropout = inner.pop(0) if inner and type(inner[0]) is nn.Dropout else None
    ends = (layers[0], layers[-1])
    if inner or len(layers) < 2 or not all(isinstance(end, nn.Linear) and end.bias is not None for end in ends):
        expected = "Sequential(Linear, activation, Dropout, Linear) with biases, activation and Dropout or not"
        raise ValueError(f"net: expected {expected}, got {' '.join(repr(net).split())}")
    return _Estimator(net, activation, dropout)


class _Estimator(nn.Sequential):
    def __init__(self, net: nn.Sequential, activation: str, dropout: nn.Module | None):
        super().__init__(OrderedDict(net.named_children()))
        self.activation = activation
        self.dropout_at = None if dropout is None else list(net).index(dropout)

    def forward(self, std: Tensor, *, seed: Tensor | None = None, sample_ids: Tensor | None = None) -> Tensor:
        first, last = self[0], self[-1]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        dropout = None if self.dropout_at is None else self[self.dropout_at]
        rows = std.reshape(-1, std.shape[-1])
        noise, _ = udml_kernels.noise_regression(
            # Widened: the logarithm must not be taken of noise rounded to half precision.
            rows.to(torch.promote_types(rows.dtype, torch.float32)),
            first.weight,
            first.bias,
            last.weight,
            last.bias,
            activation=self.activation,
            dropout_p=dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
            seed=seed,
            sample_ids=sample_ids,
        )
        o = 2 * noise.clamp(min=torch.finfo(noise.dtype).tiny).log()
        return o.to(std.dtype).reshape(*std.shape[:-1], -1)


def concat_fusion(layer: nn.Module, widths: Sequence[int]) -> ConcatFusion:
    """A `ConcatFusion` on the layer that follows a plain concatenation.

    Called with the concatenated features (B, sum C_m, *spatial) it returns logits, as the layer does; with a list of M
    features it is a `ConcatFusion`. So the model runs unchanged, and `unimodal(parts(features))` can replace its
    zero-padded calls.

    Args:
        layer: Linear, or a 1x1 convolution, with bias.
        widths: the features' channels C_m.

    Raises:
        ValueError: for another layer, or widths that do not add up to its input.
    """
    pointwise = not isinstance(layer, _Convolution) or (
        {*layer.kernel_size, *layer.stride, layer.groups} == {1} and not any(layer.padding)
    )
    if not isinstance(layer, nn.Linear | _Convolution) or not pointwise or layer.bias is None:
        raise ValueError(f"layer: expected Linear or a 1x1 convolution, with bias, got {layer}")
    if sum(widths) != layer.weight.shape[1]:
        raise ValueError(f"widths: expected a sum of {layer.weight.shape[1]}, the layer's input, got {list(widths)}")
    return _Concat(layer, widths)


class _Concat(ConcatFusion):
    def __init__(self, layer: nn.Linear | _Convolution, widths: Sequence[int]):
        assert layer.bias is not None
        # On the meta device, as weights that are replaced at once need no initialisation.
        with torch.device("meta"):
            super().__init__(widths, layer.weight.shape[0], spatial_dims=layer.weight.dim() - 2)
        self.weight, self.bias = layer.weight, layer.bias

    # Called with a single tensor, the concatenation, it acts as the layer that it replaces.
    def forward(  # type: ignore[override]
        self, features: Tensor | Sequence[Tensor], weigh: Weigh | None = None, present: Tensor | None = None
    ) -> Tensor | FusionOutput:
        if isinstance(features, Tensor):
            return self._product(features, self.weight) + self._channels(self.bias)
        return super().forward(features, weigh, present)
