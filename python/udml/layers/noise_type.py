from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._grouped import GroupedMLP

IGNORED = -100


class NoiseTypeClassifier(GroupedMLP):
    """Predicts the kind of degradation of each modality of a sample, from pooled statistics of its features.

    One perceptron per modality with one hidden layer (ReLU), all in one batched product. The input is detached:
    recognising the kinds must not shape the embedding.

    Args:
        modalities: M.
        in_features: C, the width of the features.
        kinds: names of the classes, at least two, such as "clean" or those of `udml_kernels.KINDS`.
        hidden: the MLP's width.

    The parameters hold the M classifiers stacked. A state dict of their plain counterpart ("twin") loads too:
    ModuleList(Sequential(Linear(2 C, hidden), ReLU, Linear(hidden, kinds))), with the stds before the means.

    Raises:
        ValueError: for fewer than two kinds, or repeated ones.

    Source: this package's; UDML, arXiv 2603.19681, calls noise of unknown type an open problem.
    """

    def __init__(self, modalities: int, in_features: int, kinds: Sequence[str], hidden: int = 256):
        if len(kinds) < 2 or len(set(kinds)) < len(kinds):
            raise ValueError(f"kinds: expected at least two different names, got {', '.join(kinds) or 'none'}")
        super().__init__(modalities, 2 * in_features, hidden, len(kinds))
        self.kinds = tuple(kinds)

    def forward(self, std: Sequence[Tensor], mean: Sequence[Tensor]) -> Tensor:
        """M stds and M means, (B, C) or (B, C, *spatial) to be pooled, to logits (B, M, len(kinds))."""
        if not len(std) == len(mean) == self.modalities:
            got = f"{len(std)} and {len(mean)}"
            raise ValueError(f"std, mean: expected {self.modalities} each, one a modality, got {got}")
        statistics = torch.stack([torch.cat((_pooled(s), _pooled(x)), 1) for s, x in zip(std, mean, strict=True)])
        statistics = statistics.to(self.weight1.dtype)
        hidden = torch.baddbmm(self.bias1.unsqueeze(1), statistics, self.weight1.mT).relu()
        return torch.baddbmm(self.bias2.unsqueeze(1), hidden, self.weight2.mT).transpose(0, 1)

    @staticmethod
    def loss(logits: Tensor, kind: Tensor) -> Tensor:
        """Mean cross entropy of logits (B, M, K) for int64 classes (B,) or (B, M); -100 is ignored; if all are: 0."""
        target = kind.unsqueeze(1).expand(logits.shape[:2]) if kind.dim() == 1 else kind
        total = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (target != IGNORED).sum().clamp(min=1)


def _pooled(x: Tensor) -> Tensor:
    x = x.detach()
    return x.flatten(2).mean(2) if x.dim() > 2 else x
