"""inject_noise: Gaussian noise of each sample's level, and the image pipeline from uint8."""

from functools import partial

from udml_kernels.testing.ops import inject_noise

from .case import COMPILED, FORWARD, PLAIN, Case, cases
from .shapes import CREMAD, FEATURES, KS, NYUD, TOKENS, Shape


def _build(shape: Shape) -> partial:
    return partial(inject_noise.work, shape.maps)


CASES = [
    *cases("inject_noise", [FEATURES], _build, baselines=(*PLAIN, "reference")),
    *cases("inject_noise", [CREMAD], _build, baselines=COMPILED),
    *cases("inject_noise", [KS, NYUD, TOKENS], _build),
    *cases("inject_noise", [CREMAD, NYUD], _build, directions=[FORWARD], caches=["cold"]),
    *cases("inject_noise", [CREMAD], _build, dtypes=["bfloat16"]),
    *cases("inject_noise", [CREMAD, TOKENS], _build, directions=[FORWARD], threads=1),
    Case("inject_noise", "image", lambda: inject_noise.image_work((64, 3, 128, 128)), baselines=COMPILED),
]


def test_noise(case, measure):
    measure(case)
