"""Static fusion: every modality has weight 1."""

from .base import MultimodalModel


class Static(MultimodalModel):
    """w_m = 1 for every present modality, on point embeddings; trained on degraded inputs."""


class StaticClean(Static):
    """The same network, trained only on clean inputs."""

    noisy_training = False
