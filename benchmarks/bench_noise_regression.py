"""noise_regression: the noise predicted from each modality's standard deviation, and its loss."""

from functools import partial

from udml_kernels.testing.ops import noise_regression

from .case import ALL, BOTH, COMPILED, FORWARD, Case, cases
from .shapes import FEATURES, LARGE, NYUD, Shape


def _build(shape: Shape) -> partial:
    """One row per sample, or per location in segmentation."""
    height, width = shape.maps[0][2:] if shape.locations else (1, 1)
    return partial(noise_regression.work, shape.batch * height * width, shape.width)


CASES = [
    *cases("noise_regression", [FEATURES], _build, directions=[FORWARD]),
    *cases("noise_regression", [FEATURES], _build, directions=[BOTH], baselines=ALL),
    *cases("noise_regression", [NYUD, LARGE], _build, directions=[BOTH]),
    Case(
        "noise_regression",
        "features, no dropout",
        partial(noise_regression.work, 64, 512, dropout=0.0),
        direction=BOTH,
        baselines=COMPILED,
    ),
]


def test_noise_regression(case, measure):
    measure(case)
