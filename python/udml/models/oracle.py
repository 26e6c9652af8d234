"""UDML with the true noise as input."""

from collections.abc import Mapping

from torch import Tensor, nn

from .output import Step
from .udml import UDML


class Oracle(UDML):
    """UDML with weights from the true sigma, in training and in evaluation: the result of a perfect estimator.

    Args:
        encoders, num_classes, options: as `UDML` takes them, except `estimator`.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], num_classes: int, **options):
        super().__init__(encoders, num_classes, **options, estimator=False)

    @classmethod
    def options(cls) -> set[str]:
        return super().options() - {"estimator", "hidden", "activation", "dropout_p"}

    def estimate(self, std: list[Tensor], sigma: Tensor | None, step: Step) -> tuple[Tensor | None, None]:
        """The true sigma (B, M) itself."""
        if sigma is None and step.weighting:
            raise ValueError("sigma: expected the true levels (B, M), which the oracle weighs by, got None")
        return sigma, None
