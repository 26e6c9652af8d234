"""UDML's steps as modules, each of which can be used alone in another model.

They hold the parameters and the state; udml_kernels does the arithmetic. B samples, M modalities, C channels.
"""

from .dependency import ModalityDependency
from .dropout import ModalityDropout
from .estimator import NoiseEstimator
from .guard import InputGuard
from .head import ProbabilisticHead
from .noise import Noise, NoiseInjector
from .noise_type import NoiseTypeClassifier
from .normalization import SyncBatchNorm, sync_batchnorm
from .weighting import UncertaintyWeighting

__all__ = [
    "InputGuard",
    "ModalityDependency",
    "ModalityDropout",
    "Noise",
    "NoiseEstimator",
    "NoiseInjector",
    "NoiseTypeClassifier",
    "ProbabilisticHead",
    "SyncBatchNorm",
    "UncertaintyWeighting",
    "sync_batchnorm",
]
