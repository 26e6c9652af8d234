"""UDML: unbiased dynamic multimodal learning, on the udml_kernels ops.

`udml.training`, `udml.experiments` and `udml.demo` must be imported explicitly: they need the extras.
"""

from . import data, fusion, layers, losses, models
from .data import load_data
from .fusion import FUSIONS, make_fusion
from .layers import (
    ModalityDependency,
    ModalityDropout,
    Noise,
    NoiseEstimator,
    NoiseInjector,
    NoiseTypeClassifier,
    ProbabilisticHead,
    SyncBatchNorm,
    UncertaintyWeighting,
    sync_batchnorm,
)
from .losses import LossWeights, udml_loss
from .models import METHODS, UDML, build_model
from .patching import patch
from .schedule import Phase, ProgressiveSchedule

__all__ = [
    "FUSIONS",
    "METHODS",
    "UDML",
    "LossWeights",
    "ModalityDependency",
    "ModalityDropout",
    "Noise",
    "NoiseEstimator",
    "NoiseInjector",
    "NoiseTypeClassifier",
    "Phase",
    "ProbabilisticHead",
    "ProgressiveSchedule",
    "SyncBatchNorm",
    "UncertaintyWeighting",
    "build_model",
    "data",
    "fusion",
    "layers",
    "load_data",
    "losses",
    "make_fusion",
    "models",
    "patch",
    "sync_batchnorm",
    "udml_loss",
]
