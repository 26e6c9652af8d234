"""evidential_fusion and evidential_loss: the evidence of all views combined, and the loss of the result."""

from functools import partial

from udml_kernels.testing.ops import evidential_fusion

from .case import BOTH, COMPILED, FORWARD, PLAIN, Case

# Samples, views and classes; segmentation has one row per location.
_SHAPES = {"cremad": (64, 2, 6), "ks": (64, 2, 34), "nyud": (8 * 60 * 80, 2, 40), "large": (4096, 3, 34)}

CASES = [
    Case(
        "evidential_fusion",
        name,
        partial(evidential_fusion.work, *shape),
        direction=direction,
        baselines=COMPILED if (name, direction) == ("large", BOTH) else PLAIN,
    )
    for name, shape in _SHAPES.items()
    for direction in (FORWARD, BOTH)
]


def test_evidential(case, measure):
    measure(case)
