"""The named shapes: the ops' inputs in the models of the method's data sets, batch first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A feature map for each modality.

    Attributes:
        maps: (B, C, *spatial) of each modality.
        locations: whether every location has its own weights (segmentation); else the features are pooled first.
    """

    name: str
    maps: tuple[tuple[int, ...], ...]
    locations: bool = False

    @property
    def batch(self) -> int:
        """B."""
        return self.maps[0][0]

    @property
    def width(self) -> int:
        """C."""
        return self.maps[0][1]

    def of_batch(self, batch: int) -> "Shape":
        """The same shape with another number of samples."""
        return Shape(self.name, tuple((batch, *shape[1:]) for shape in self.maps), self.locations)


# Audio-visual classification: a ResNet's last feature maps of an image and of a spectrogram.
CREMAD = Shape("cremad", ((64, 512, 7, 7), (64, 512, 9, 6)))
# The same with three frames.
KS = Shape("ks", ((64, 512, 3, 7, 7), (64, 512, 9, 6)))
# RGB-D segmentation.
NYUD = Shape("nyud", ((8, 256, 60, 80),) * 2, locations=True)
# A video transformer's tokens.
TOKENS = Shape("tokens", ((64, 1568, 768),))
# Pooled features.
FEATURES = Shape("features", ((64, 512),) * 2)
# Pooled features of a batch of 64 MiB, too large for the caches of most processors.
LARGE = Shape("large", ((16384, 512),) * 2)
# The shape that the first speed goals were set for.
MAP14 = Shape("map14", ((64, 512, 14, 14),))
# Too small for a kernel's time to matter.
TINY = Shape("tiny", ((1, 16),) * 2)
