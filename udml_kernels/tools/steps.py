"""One call of a workload, with its backward if it has one, and whether its results are right."""

import dataclasses
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import backends, draw_seed
from ..testing.works import Call, Work, tensors
from .tolerances import compare

# Above this many elements, works whose results have one row per sample are compared on a few samples: the reference
# takes a quarter of a microsecond for each element.
_WHOLE = 1 << 21


def converted(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested lists with every tensor changed and detached from autograd."""
    if isinstance(value, list):
        return [converted(item, change) for item in value]
    return change(value.detach()) if isinstance(value, Tensor) else value


class Step:
    """One call, with its backward if the work has one."""

    def __init__(self, work: Work, call: Call, device: torch.device, dtype: torch.dtype | None = None):
        def place(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        self.work, self.call, self.place = work, call, place
        self.inputs = [converted(value, place) for value in work.inputs]
        self.leaves = [t.requires_grad_() for i in work.leaves for t in tensors(self.inputs[i])]
        self.incoming: list[Tensor] | None = None

    def __call__(self, *seed: Tensor) -> list[Tensor]:
        """The floating-point outputs, then the gradients."""
        outputs = [o for o in tensors(self.call(*self.inputs, *seed)) if o.is_floating_point()]
        if not self.leaves:
            return outputs
        differentiable = [o for o in outputs if o.requires_grad]
        if self.incoming is None:
            self.incoming = [self.place(g) for g in self.work.gradients(differentiable)]
        return [*outputs, *torch.autograd.grad(differentiable, self.leaves, self.incoming)]


def fused_step(work: Work, device: torch.device, backend: str | None = None) -> Callable[[], list[Tensor]]:
    """The fused call, on the backend that serves the device or on another one.

    A user draws a seed every step, so its cost counts.
    """
    step = Step(work, work.fused, device)
    if backend is None:
        return lambda: step(draw_seed(device))

    def chosen() -> list[Tensor]:
        with backends.use_backend(backend):
            return step(draw_seed(device))

    return chosen


def wrong(work: Work, device: torch.device, others: tuple[str, ...] = ()) -> list[str]:
    """Differences from the reference, of the fused call and of the baselines without randomness.

    Args:
        others: backends to compare in addition to the one that serves the device.
    """
    if work.check is not None:
        return work.check(device, others)
    seed, found = draw_seed(device), []
    dtype = next((t.dtype for t in tensors(work.inputs) if t.is_floating_point()), torch.float32)
    results = {"fused": Step(work, work.fused, device)(seed)}
    for backend in others:
        with backends.use_backend(backend):
            results[backend] = Step(work, work.fused, device)(seed)
    if work.deterministic:
        results |= {name: Step(work, call, device)() for name, call in work.eager.items()}
    if work.by_sample and work.elements > _WHOLE:
        batch = len(results["fused"][0])
        rows = torch.tensor(sorted({0, 1, batch // 2, batch - 1}), device=device)
        results = {name: [value[rows] for value in values] for name, values in results.items()}
        work = some_samples(work, batch, rows)
    with backends.use_backend("reference"):
        same = Step(work, work.fused, device)(seed)
        truth = Step(work, work.float64_fused or work.fused, device, torch.float64)(seed)
    for name, values in results.items():
        for i, (value, s, e) in enumerate(zip(values, same, truth, strict=True)):
            error, allowed = compare(value.detach(), s.detach(), e.detach(), dtype)
            if error > allowed:
                found.append(f"{name}, result {i}: error {error:.2e}, allowed {allowed:.2e}")
    return found


def differences(work: Work, device: torch.device, others: tuple[str, ...] = ()) -> list[str]:
    """The same as `wrong`, but a call that fails is a difference too."""
    try:
        return wrong(work, device, others)
    except Exception as failure:
        return [_first_line(failure)]


def compiles(name: str, step: Step, say: Callable[[str], object]) -> bool:
    """Whether a step through torch.compile runs; it is called once, and `say` is told why it fails."""
    try:
        # Inductor emits warnings about torch's own code.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
    except Exception as failure:
        say(f"  {name}: torch.compile failed: {_first_line(failure)}")
        return False
    return True


def variants(
    work: Work, device: torch.device, baselines: Collection[str], say: Callable[[str], object]
) -> dict[str, tuple[str, Callable[[], object]]]:
    """Kind and call of all implementations of a work, by name.

    They are the baselines ("eager", "compile", "reference"), other libraries on the CPU, the other backends that could
    serve the device and, last, "fused". `say` is told what torch.compile cannot compile.
    """
    found: dict[str, tuple[str, Callable[[], object]]] = {}
    if "eager" in baselines:
        found |= {name: ("eager", Step(work, call, device)) for name, call in work.eager.items()}
    if "compile" in baselines:
        for name, call in _compiled(work).items():
            step = Step(work, call, device)
            if compiles(name, step, say):
                found[name] = "compile", step
    if "reference" in baselines:
        found["reference"] = "reference", fused_step(work, device, "reference")
    if device.type == "cpu":
        found |= {name: ("library", Step(work, call, device)) for name, call in work.libraries.items()}
    found |= {backend: ("fused", fused_step(work, device, backend)) for backend in other_backends(device)}
    return found | {"fused": ("fused", fused_step(work, device))}


def _compiled(work: Work) -> dict[str, Call]:
    if work.compiled:
        return work.compiled
    return {f"compile{name.removeprefix('eager')}": torch.compile(c, dynamic=False) for name, c in work.eager.items()}


def other_backends(device: torch.device) -> tuple[str, ...]:
    """The other backends that could serve the device."""
    if device.type == "cpu":
        return ()
    rest = {"cuda", "triton"} - {backends.select(device)}
    return tuple(sorted(b for b in rest if backends.why_unavailable(b, device) is None))


def _first_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"


def some_samples(work: Work, batch: int, rows: Tensor) -> Work:
    """The same work on some of its samples, which keep their sample ids."""

    def chosen(value: Tensor) -> Tensor:
        return value[rows.to(value.device)] if value.dim() and len(value) == batch else value

    return dataclasses.replace(
        work,
        inputs=[converted(value, chosen) for value in work.inputs],
        incoming=None if work.incoming is None else [chosen(g) for g in work.incoming],
        fused=partial(work.fused, sample_ids=rows),
        float64_fused=work.float64_fused and partial(work.float64_fused, sample_ids=rows),
    )
