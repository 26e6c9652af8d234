"""Images as network inputs: uint8, all of one size."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..layers.noise import Noise
from .files import open_image

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The noise's standard deviation is the level squared, on 0 to 255, as in the code of the UDML paper's authors.
IMAGE_NOISE = Noise(unit=1.0, power=2.0, clamp=(0.0, 255.0), normalize=(255.0, *IMAGENET))


def resized(image, size: tuple[int, int], *, smooth: bool):
    """A PIL image resized to (height, width) pixels, bilinearly or by nearest neighbour."""
    from PIL.Image import Resampling

    if image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), Resampling.BILINEAR if smooth else Resampling.NEAREST)


def rgb_tensor(image, size: tuple[int, int]) -> Tensor:
    """A PIL image as uint8 (3, height, width); 16-bit grey is scaled so that 65,535 becomes 255."""
    if image.mode.startswith("I"):
        from PIL import Image

        # PIL's own conversion would clip everything at 255.
        levels = (np.array(image).astype(np.int64).clip(0, 65_535) + 128) // 257
        image = Image.fromarray(levels.astype(np.uint8))
    pixels = np.array(resized(image.convert("RGB"), size, smooth=True))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_rgb(path: Path, size: tuple[int, int]) -> Tensor:
    """An image file as uint8 (3, height, width)."""
    return rgb_tensor(open_image(path), size)
