"""The comparison that the suite and `check` make: one case on one backend in one dtype, with the reference."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import udml_kernels

from .. import reference
from ..tools.tolerances import assert_close
from .cases import Case
from .draw import Draw, mapped, named_tensors
from .ops import OPS

# (name, got, same, truth, dtype, terms)
Compared = tuple[str, Tensor, Tensor, Tensor, torch.dtype, float]


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every tensor that ATen allocates is filled with NaN (integers: their maximum), from C++ too."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    # mypy does not see the property that this module's class has.
    settings: Any = torch.utils.deterministic
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        settings.fill_uninitialized_memory = filled


def flat_outputs(op: str, result) -> dict[str, Tensor]:
    names = OPS[op].outputs
    values = result if len(names) > 1 else (result,)
    return dict(named_tensors(dict(zip(names, values, strict=True))))


def wanted_inputs(case: Case, inputs: dict) -> list[str]:
    floats = [name for name, value in named_tensors(inputs) if value.is_floating_point()]
    floats = [name for name in floats if name != "p"]
    if case.wrt is not None:
        assert set(case.wrt) <= set(floats), f"{case} has no such inputs: {case.wrt}"
        return list(case.wrt)
    return floats


def incoming_gradients(case: Case, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random gradients for the outputs that the case differentiates, each in its output's dtype."""
    names = [name for name, value in outputs.items() if value.is_floating_point()]
    if case.through is not None:
        names = [names[i] for i in case.through]
    draw = Draw(f"gradients of {case}", torch.float64, case.grads, case.special_grads, case.number)
    return {name: draw.normal(*outputs[name].shape, scale=case.grad_scale, dtype=outputs[name].dtype) for name in names}


def as_leaves(inputs: dict, wanted: list[str], dtype: torch.dtype | None = None) -> dict:
    """Detached inputs, those in `wanted` requiring gradients; with `dtype`, float and uint8 ones widened to it."""

    def leaf(name: str, value: Tensor) -> Tensor:
        if dtype is not None and (value.is_floating_point() or value.dtype == torch.uint8):
            value = value.to(dtype)
        return value.detach().requires_grad_(name in wanted)

    return mapped(inputs, leaf)


def evaluate(function: Callable, case: Case, inputs: dict, wanted: list[str], gradients: dict | None = None):
    """Outputs and gradients by name; `gradients` None gives the outputs alone."""
    outputs = flat_outputs(case.op, function(**inputs))
    return outputs, {} if gradients is None else input_gradients(inputs, outputs, wanted, gradients)


def input_gradients(inputs: dict, outputs: dict[str, Tensor], wanted: list[str], gradients: dict) -> dict[str, Tensor]:
    leaves = dict(named_tensors(inputs))
    through = [name for name in gradients if outputs[name].requires_grad]
    results: Sequence[Tensor | None] = [None] * len(wanted)
    if through:
        results = torch.autograd.grad(
            [outputs[name] for name in through],
            [leaves[name] for name in wanted],
            [gradients[name].to(outputs[name].dtype) for name in through],
            allow_unused=True,
        )
    # Autograd gives None for an input that no output depends on. A backend may give None or zeros; both count as zeros.
    given = {n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(wanted, results, strict=True)}
    return {f"gradient of {name}": value for name, value in given.items()}


def reference_pair(case: Case, inputs: dict, wanted: list[str], gradients: dict):
    """(`same`, `truth`): outputs and gradients of the reference as they are and in float64.

    It runs on the CPU, where no setting rounds the operands of a matrix product to TF32.
    """
    plain, device = getattr(reference, case.op), torch.get_default_device()
    inputs = mapped(inputs, lambda _, value: value.cpu())
    gradients = {name: value.cpu() for name, value in gradients.items()}
    with contextlib.nullcontext() if device.type == "cpu" else torch.device("cpu"):
        same = evaluate(plain, case, as_leaves(inputs, wanted), wanted, gradients)
        truth = evaluate(plain, case, float64_leaves(inputs, wanted), wanted, gradients)
    return tuple(tuple({n: v.to(device) for n, v in part.items()} for part in pair) for pair in (same, truth))


def float64_leaves(inputs: dict, wanted: list[str]) -> dict:
    """The inputs in float64, and so the results."""
    leaves = as_leaves(inputs, wanted, torch.float64)
    return leaves | {name: torch.float64 for name in ("out_dtype", "dtype") if name in leaves}


def _stored(tensor: Tensor) -> Tensor:
    """The whole storage as bytes: what a strided tensor leaves out must not change either."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _snapshot(tensors: list[Tensor]) -> list[tuple]:
    return [(t, t._version, _stored(t).clone()) for t in tensors]


def _assert_unmodified(snapshot: list[tuple]) -> None:
    for tensor, version, content in snapshot:
        assert tensor._version == version, "an input's version counter moved"
        assert torch.equal(_stored(tensor), content), "an input was written to"


def _has_channels_last(t: Tensor) -> bool:
    return t.movedim(1, -1).is_contiguous() and not t.is_contiguous()


def _assert_dense(op: str, outputs: dict[str, Tensor], inputs: dict) -> None:
    """Contiguous, or with the channels last like the inputs that decide about it."""
    named = dict(named_tensors(inputs))
    for name, value in outputs.items():
        output, bracket, index = name.partition("[")
        sources = [named[f"{source}{bracket}{index}"] for source in OPS[op].laid_out.get(output, ())]
        if sources and all(map(_has_channels_last, sources)):
            assert value.movedim(1, -1).is_contiguous(), f"{name}: not dense with the channels last"
        else:
            assert value.is_contiguous(), f"{name}: not contiguous"


def _assert_fresh(outputs: dict[str, Tensor], given: list[Tensor]) -> None:
    """Sharing memory neither with an input nor with each other."""
    taken = {t.untyped_storage().data_ptr() for t in given if t.numel()}
    for name, value in outputs.items():
        if value.numel():
            assert value.untyped_storage().data_ptr() not in taken, f"{name}: shares memory"
            taken.add(value.untyped_storage().data_ptr())


def assert_alike(name: str, got: Tensor, same: Tensor) -> None:
    assert got.dtype == same.dtype, f"{name}: {got.dtype}, the reference has {same.dtype}"
    assert got.shape == same.shape, f"{name}: shape {tuple(got.shape)}, the reference has {tuple(same.shape)}"


def check(case: Case, backend: str, dtype: torch.dtype) -> None:
    """Forward and every gradient of one case; raises AssertionError at the first fault."""
    for compared in comparisons(case, backend, dtype):
        assert_close(*compared)


def comparisons(case: Case, backend: str, dtype: torch.dtype) -> Iterator[Compared]:
    """The arguments of `assert_close` for each output and each gradient; raises AssertionError for other faults."""
    inputs = case.inputs(dtype)
    wanted = wanted_inputs(case, inputs)
    with torch.no_grad():
        shapes, _ = evaluate(getattr(reference, case.op), case, inputs, wanted)
    gradients = incoming_gradients(case, shapes)
    same, truth = reference_pair(case, inputs, wanted, gradients)
    got = kernel_results(case, backend, dtype, inputs, wanted, gradients)
    precision = torch.float32 if is_image(case, inputs) else dtype
    for values, references, truths in zip(got, same, truth, strict=True):
        assert values.keys() == references.keys() == truths.keys(), f"{values.keys()} against {references.keys()}"
        for name in values:
            assert_alike(name, values[name], references[name])
            tensors = (values[name].detach(), references[name].detach(), truths[name].detach())
            yield name, *tensors, precision, case.cancels.get(name, 0)


def kernel_results(case: Case, backend: str, dtype: torch.dtype, inputs: dict, wanted: list[str], gradients: dict):
    """Outputs and gradients of a backend, with all checks that need no reference."""
    leaves = as_leaves(inputs, wanted)
    given = [value for _, value in named_tensors(leaves)] + list(gradients.values())
    before = _snapshot(given)
    with udml_kernels.use_backend(backend), poisoned_memory():
        got = evaluate(getattr(udml_kernels, case.op), case, leaves, wanted, gradients)
        with torch.no_grad():
            alone, _ = evaluate(getattr(udml_kernels, case.op), case, leaves, wanted)
    _assert_unmodified(before)
    # The reference is not one of the kernels: its results may be views.
    if backend != "reference":
        _assert_dense(case.op, got[0], leaves)
        _assert_fresh(got[0], given)
    _check_dtypes(case, dtype, got[0], inputs)
    for name, value in alone.items():
        assert same_bits(value, got[0][name]), f"{name}: differs without autograd"
    return got


def is_image(case: Case, inputs: dict) -> bool:
    return case.op == "inject_noise" and any(
        value.dtype == torch.uint8 for name, value in named_tensors(inputs) if name.partition("[")[0] == "x"
    )


def _check_dtypes(case: Case, dtype: torch.dtype, outputs: dict[str, Tensor], inputs: dict) -> None:
    """What the dtypes have to be, stated apart from the reference."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    narrow = inputs.get("out_dtype") or (torch.float32 if is_image(case, inputs) else dtype)
    for name, value in outputs.items():
        expected = torch.bool if name == "mask" else wide if name.partition("[")[0] in OPS[case.op].wide else narrow
        assert value.dtype == expected, f"{name}: {value.dtype}, expected {expected}"


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal bit by bit, NaN included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    return torch.equal(one.detach().view(bits), other.detach().view(bits))
