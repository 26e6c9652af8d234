"""Time the UDML ops of one training step, on that step's own tensors."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

import udml_kernels

from ..schedule import PHASES
from ..training import Result
from ..training.module import TrainingModule
from ..training.randomness import epoch_order, step_seeds

OPS = ("inject_noise", "reparameterize", "noise_regression", "modality_dependency")
FUSION = "fusion"
TOTAL = "all ops of the step"
REPEATS = 21
WARM_UP = 3


@dataclass
class Timing:
    """Processor seconds of every repeat, one list per backend, in the requested order."""

    name: str
    seconds: tuple[list[float], ...]

    @property
    def ratio(self) -> float:
        """The last backend's median divided by the first one's."""
        return statistics.median(self.seconds[-1]) / statistics.median(self.seconds[0])


@dataclass
class Call:
    """A call that a training step made.

    Attributes:
        function: the function that was called.
        arguments, keywords: its arguments, detached from the step: leaves that require gradients where theirs did.
        gradients: the gradients from the backward pass, by the index of the output.
    """

    function: Callable
    arguments: tuple
    keywords: dict[str, Any]
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def receive(self, place: int, gradient: Tensor | None) -> None:
        """Keep a gradient; an unused output gets None if another output is used."""
        if gradient is not None:
            self.gradients[place] = gradient

    def outputs(self) -> list[Tensor]:
        """Call it again."""
        return tree_leaves(self.function(*self.arguments, **self.keywords))

    def leaves(self) -> list[Tensor]:
        """The arguments that require gradients."""
        given = tree_leaves((self.arguments, self.keywords))
        return [x for x in given if isinstance(x, Tensor) and x.requires_grad]


def record_step(result: Result) -> dict[str, list[Call]]:
    """Make one step of the weighted phase, forward and backward, on a copy of the model.

    Returns:
        The calls by name: those of OPS and, as FUSION, those of the weighting, with all that it adds to the op.
    """
    config, data = result.config, result.data
    module = TrainingModule(copy.deepcopy(result.model).train(), data.spec, config)
    batch = data.train.__getitems__(epoch_order(config.seed, 0, len(data.train))[: config.batch_size].tolist())
    owners: dict[str, tuple[Any, str]] = {name: (udml_kernels, name) for name in OPS}
    with recorded(owners | {FUSION: (module.model.weighting, "forward")}) as calls:
        loss, _ = module.objective(batch, PHASES[-1], step_seeds(config.seed, 0, 1))
        loss.backward()
    return calls


@contextmanager
def recorded(places: Mapping[str, tuple[Any, str]]) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of functions while the block runs; `places` gives the owner and attribute of each."""
    calls: dict[str, list[Call]] = {name: [] for name in places}
    functions = {name: getattr(*place) for name, place in places.items()}
    for name, place in places.items():
        setattr(*place, _recorder(functions[name], calls[name]))
    try:
        yield calls
    finally:
        for name, place in places.items():
            setattr(*place, functions[name])


def _recorder(function: Callable, calls: list[Call]) -> Callable:
    def record(*arguments, **keywords):
        call = Call(function, *tree_map(_cut_off, (arguments, keywords)))
        calls.append(call)
        outputs = function(*arguments, **keywords)
        for i, output in enumerate(tree_leaves(outputs)):
            if output.requires_grad:
                output.register_hook(lambda gradient, i=i: call.receive(i, gradient))
        return outputs

    return record


def _cut_off(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _forward_backward(calls: Sequence[Call], leaves: Sequence[Tensor]) -> float:
    # Processor time: on one thread it is the elapsed time without the time that other processes take.
    start = time.process_time()
    outputs = [call.outputs() for call in calls]
    pairs = [(given[i], g) for call, given in zip(calls, outputs, strict=True) for i, g in call.gradients.items()]
    if pairs:
        made, gradients = zip(*pairs, strict=True)
        torch.autograd.grad(made, leaves, gradients, allow_unused=True)
    return time.process_time() - start


def time_ops(result: Result, backends: Sequence[str]) -> list[Timing]:
    """Time forward and backward of every op in a training step and of all together; the backends take turns.

    Args:
        result: a UDML model's result; it is not changed.
        backends: names for `udml_kernels.use_backend`.
    """
    calls = record_step(result)
    calls[TOTAL] = [call for made in calls.values() for call in made]
    timings = []
    for name, made in calls.items():
        leaves = [leaf for call in made for leaf in call.leaves()]
        seconds: tuple[list[float], ...] = tuple([] for _ in backends)
        for repeat in range(WARM_UP + REPEATS):
            for backend, measured in zip(backends, seconds, strict=True):
                with udml_kernels.use_backend(backend):
                    elapsed = _forward_backward(made, leaves)
                if repeat >= WARM_UP:
                    measured.append(elapsed)
        timings.append(Timing(name, seconds))
    return timings
