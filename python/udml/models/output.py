"""The inputs and the output of one forward pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Output:
    """The output of one forward pass, for B samples, M modalities and K classes; *sp is (), in segmentation (h, w).

    Attributes:
        logits: (B, K), of all modalities together; in segmentation (B, K, H, W), of the inputs' size.
        unimodal: (M, B, K, *sp), of each modality alone.
        weights: (B, M) or (B, M, *sp); exactly 0 for a missing modality.
        noise: (B, M) or (B, M, *sp), a standard deviation; weights fall as it rises.
        kl: (B,), summed over the modalities that are present, nats.
        noise_loss: a scalar, the mean squared error of the noise to the true sigma, for a method that learns it.
        dependency: alpha, (M,) or (B, M), as used by the weights.
        std: M tensors (B, C, *sp), of the embeddings.
        features: M tensors (B, C, *sp), the embeddings that were fused; 0 for a missing modality.
        present: bool (B, M), as given, but False for the inputs of a broken sensor; see `MultimodalModel`.
        fused_features: the features as used for the fused logits only, if a method separates the two gradients.

    An attribute is None if the method does not have it.
    """

    logits: Tensor
    unimodal: Tensor
    weights: Tensor
    noise: Tensor | None = None
    kl: Tensor | None = None
    noise_loss: Tensor | None = None
    dependency: Tensor | None = None
    std: list[Tensor] | None = None
    features: list[Tensor] = field(default_factory=list)
    present: Tensor | None = None
    fused_features: list[Tensor] | None = None


@dataclass
class Step:
    """The inputs of one forward pass; see `MultimodalModel.forward`."""

    inputs: Mapping[str, Tensor]
    sigma: Tensor | None
    present: Tensor | None
    weighting: bool
    seed: Tensor | None
    sample_ids: Tensor | None

    @property
    def batch(self) -> int:
        """B."""
        return len(next(iter(self.inputs.values())))
