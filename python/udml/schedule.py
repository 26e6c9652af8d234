"""Progressive optimisation: clean data first, then noisy data, then uncertainty weighting."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """What applies in an epoch.

    Attributes:
        name: clean, noisy or weighted.
        noise: whether the inputs are degraded; the noise estimator learns only then.
        weighting: whether the modalities are weighted by uncertainty and dependency.
    """

    name: str
    noise: bool
    weighting: bool


PHASES = (Phase("clean", False, False), Phase("noisy", True, False), Phase("weighted", True, True))


@dataclass(frozen=True)
class ProgressiveSchedule:
    """Epochs of each phase, in order; a phase of 0 epochs is left out.

    Source: UDML, arXiv 2603.19681 (progressive optimisation).
    """

    clean: int
    noisy: int
    weighted: int

    def __post_init__(self):
        if min(self.lengths) < 0 or self.epochs == 0:
            raise ValueError(f"schedule: expected epochs of at least 0 and one in all, got {self.lengths}")

    @classmethod
    def of(cls, epochs: int) -> "ProgressiveSchedule":
        """Split epochs in the default shares: 3/8 clean, 3/8 noisy, the rest weighted.

        Fewer than one a phase are given to the last phases: 1 is weighted, 2 are noisy and weighted.

        Raises:
            ValueError: for less than 1.
        """
        if epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {epochs}")
        if epochs < len(PHASES):
            return cls(0, epochs - 1, 1)
        share = max(1, 3 * epochs // 8)
        return cls(share, share, epochs - 2 * share)

    @property
    def lengths(self) -> tuple[int, int, int]:
        return self.clean, self.noisy, self.weighted

    @property
    def epochs(self) -> int:
        return sum(self.lengths)

    def position(self, epoch: int) -> tuple[Phase, int, int]:
        """The phase of an epoch counted from 0, the epoch inside it, and the phase's length.

        Raises:
            ValueError: for an epoch outside the schedule.
        """
        start = 0
        for phase, length in zip(PHASES, self.lengths, strict=True):
            if start <= epoch < start + length:
                return phase, epoch - start, length
            start += length
        raise ValueError(f"epoch: expected one in [0, {self.epochs}), got {epoch}")

    def learning_rate(self, base: float, epoch: int, *, end: float = 0.05) -> float:
        """Half a cosine from base to end * base in every phase, so that the model has settled when a phase ends."""
        _, inside, length = self.position(epoch)
        return base * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * inside / length)))
