"""Quality-aware multimodal fusion: late fusion by the energy of each modality's logits."""

import torch

from .base import MultimodalModel
from .output import Output, Step


class QMF(MultimodalModel):
    """logits = sum_m conf_m logits_m with conf_m = logsumexp(logits_m) / 10, through which no gradient passes.

    logits_m are the fusion's unimodal logits; `weights` holds conf. The source's rank regulariser over the training
    history is left out.

    Source: Zhang et al., Provable Dynamic Fusion for Low-Quality Multimodal Data, ICML 2023.
    """

    def _forward(self, step: Step) -> Output:
        features = [e.features for e in self.embed(step)]
        unimodal = self.fusion.unimodal(self.fusion.parts(features), step.present)
        confidence = unimodal.detach().logsumexp(2) / 10
        if step.present is not None:
            here = step.present.mT.reshape(*step.present.mT.shape, *[1] * (confidence.dim() - 2))
            confidence = torch.where(here, confidence, 0)
        logits = (confidence.unsqueeze(2) * unimodal).sum(0)
        return Output(logits, unimodal, confidence.movedim(0, 1), features=features, present=step.present)
