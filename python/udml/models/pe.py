"""Dynamic fusion by the embeddings' own uncertainty."""

from collections.abc import Mapping

import torch
from torch import nn

from ..layers import UncertaintyWeighting
from .base import MultimodalModel
from .embedding import Embedding, NormalEmbedding
from .output import Output, Step


class PE(MultimodalModel):
    """Probabilistic embeddings weighted by w_m = g(1 / mean(std_m^2)), the std learned without supervision.

    The mean is over the channels (and in classification the locations). The KL's prior is N(0, 1). The std is trained
    by the task, through the samples and the weights, and by the KL.

    Args:
        encoders, num_classes, options: as `MultimodalModel` takes them.
        g, temperature, floor: as `UncertaintyWeighting` takes them; the floor is in units of the std.

    Source: the baseline "dynamic (PE)" of UDML, arXiv 2603.19681.
    """

    probabilistic = True

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        num_classes: int,
        *,
        g: str = "inverse",
        temperature: float = 1.0,
        floor: float = 0.0,
        **options,
    ):
        super().__init__(encoders, num_classes, **options)
        self.weighting = UncertaintyWeighting(g=g, temperature=temperature, floor=floor)

    def _forward(self, step: Step) -> Output:
        embedded = self.embed(step)
        features = [e.features for e in embedded]
        noise = torch.stack([self._spread(e, name) for e, name in zip(embedded, self.modalities, strict=True)], 1)
        weigh = self.weigh(step, noise if step.weighting else None)
        logits, unimodal, weights = self.fusion(features, weigh, step.present)
        return Output(
            logits,
            unimodal,
            weights,
            noise=noise,
            kl=torch.stack([e.kl for e in embedded if e.kl is not None]).sum(0),
            std=[e.std for e in embedded if e.std is not None],
            features=features,
            present=step.present,
        )

    def _spread(self, e: Embedding, name: str) -> torch.Tensor:
        """The root mean square of an embedding's std, (B, *sp)."""
        head = self.heads[name]
        assert isinstance(head, NormalEmbedding) and e.logvar is not None and e.std is not None
        if self.task == "classification":
            return head.std_of(e.logvar).square().flatten(1).mean(1).sqrt()
        return e.std.square().mean(1).sqrt()
