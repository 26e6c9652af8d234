"""The reference implementation: every op in plain PyTorch, written directly from the formulas.

Differentiable by autograd to any order, correct in float64, and slow. Half-precision inputs are
computed in float32 and rounded once at the end, as every backend does.
"""

from .evidential import evidential_fusion, evidential_loss
from .fusion import fusion_weights, weighted_fusion
from .modality_dropout import modality_dependency, modality_dropout
from .noise import inject_noise
from .noise_regression import noise_regression
from .random import normal, uniform
from .reparameterize import reparameterize

__all__ = [
    "evidential_fusion",
    "evidential_loss",
    "fusion_weights",
    "inject_noise",
    "modality_dependency",
    "modality_dropout",
    "noise_regression",
    "normal",
    "reparameterize",
    "uniform",
    "weighted_fusion",
]
