"""UDML: unbiased dynamic multimodal learning, on the udml_kernels ops."""

from .layers import ModalityDependency, NoiseEstimator, NoiseInjector, ProbabilisticHead, UncertaintyWeighting
from .losses import LossWeights, udml_loss
from .demo.network import UDML, ConvEncoder, UDMLOutput
from .patching import patch
from .schedule import Phase, ProgressiveSchedule

__all__ = [
    "UDML",
    "ConvEncoder",
    "LossWeights",
    "ModalityDependency",
    "NoiseEstimator",
    "NoiseInjector",
    "Phase",
    "ProbabilisticHead",
    "ProgressiveSchedule",
    "UDMLOutput",
    "UncertaintyWeighting",
    "patch",
    "udml_loss",
]
