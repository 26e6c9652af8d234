"""The training step: encoders, all ops, the objective, backward and the optimizer."""

from functools import partial

from .case import BOTH, COMPILED, Case
from .training_step import classifier, perceptron

CASES = [
    Case("training_step", name, build, direction=BOTH, baselines=COMPILED)
    for name, build in (
        ("features", perceptron),
        ("cremad", classifier),
        # The ops under torch.compile too, beside plain PyTorch under torch.compile.
        ("features, compiled", partial(perceptron, compiled=True)),
        ("cremad, compiled", partial(classifier, compiled=True)),
    )
]


def test_training_step(case, measure):
    measure(case)
