"""Static fusion: every modality weighs 1."""

from .base import MultimodalModel


class Static(MultimodalModel):
    """w_m = 1 for every modality that is present, on point embeddings; trained on degraded inputs."""


class StaticClean(Static):
    """The same network, trained on clean inputs alone."""

    noisy_training = False
