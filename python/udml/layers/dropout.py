from collections.abc import Sequence

import torch
from torch import Tensor, nn

import udml_kernels


class ModalityDropout(nn.Module):
    """Zero whole modalities, per sample, in training; what is kept is not rescaled. In evaluation, the identity.

    Args:
        p: probability of dropping a modality, for all or for each. With two modalities and keep_one,
            1 - sqrt(1/3) makes {first alone, second alone, both} equally likely, as the authors draw them.
        keep_one: never drop all the modalities of a sample.

    Raises:
        ValueError: for a p outside [0, 1].

    Source: UDML, arXiv 2603.19681 (modality dropout); `udml_kernels.modality_dropout`.
    """

    p: Tensor

    def __init__(self, p: float | Sequence[float] = 0.5, *, keep_one: bool = True):
        super().__init__()
        probabilities = torch.as_tensor(p, dtype=torch.float32)
        if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
            raise ValueError(f"p: expected probabilities in [0, 1], got {p}")
        self.register_buffer("p", probabilities, persistent=False)
        self.keep_one = keep_one

    def extra_repr(self) -> str:
        return f"p={self.p.tolist()}, keep_one={self.keep_one}"

    def forward(
        self,
        features: Sequence[Tensor],
        *,
        seed: Tensor | None = None,
        stream: int = 0,
        sample_ids: Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """M features (B, ...) to those kept or zeroed, and bool (B, M), True where kept.

        Args:
            features: M tensors (B, ...), one floating dtype.
            seed: int64 (1,); None draws one. Used only in training.
            stream: distinguishes calls that share a seed.
            sample_ids: int64 (B,), the samples' identities; None for 0..B-1.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is expected.
        """
        if not self.training:
            kept = torch.ones((len(features[0]), len(features)), dtype=torch.bool, device=features[0].device)
            return tuple(features), kept
        return udml_kernels.modality_dropout(
            features, self.p, keep_one=self.keep_one, seed=seed, stream=stream, sample_ids=sample_ids
        )
