"""Fused ops for unbiased dynamic multimodal fusion (UDML): the public functions, nothing else."""

from . import backends, reference
from .backends import use_backend
from .ops.evidential import evidential_fusion, evidential_loss
from .ops.fusion import fusion_weights, weighted_fusion
from .ops.modality_dropout import modality_dependency, modality_dropout
from .ops.noise import inject_noise
from .ops.noise_regression import noise_regression
from .ops.random import normal, uniform
from .ops.reparameterize import reparameterize
from .random import draw_seed
from .reference.noise import KINDS

backends.load()

__version__ = "0.1.0"
__all__ = [
    "KINDS",
    "draw_seed",
    "evidential_fusion",
    "evidential_loss",
    "fusion_weights",
    "inject_noise",
    "modality_dependency",
    "modality_dropout",
    "noise_regression",
    "normal",
    "reference",
    "reparameterize",
    "uniform",
    "use_backend",
    "weighted_fusion",
]
