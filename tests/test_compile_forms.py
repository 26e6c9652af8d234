"""Each form of each argument under torch.compile(fullgraph=True, dynamic=True), with twelve values one after another.

A second compilation is allowed, where a size or a number turns out to change; a third is not.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

import udml_kernels
from udml_kernels.testing.conformance import same_bits
from udml_kernels.testing.draw import named_tensors

from . import DEVICE
from .backends import BACKENDS

B, M, C, K = 5, 3, 4, 6
VALUES = 12


def _draw(*shape: int, key: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator(DEVICE).manual_seed(key)) + 0.25


def _base(op: str) -> dict:
    seed = torch.tensor([7])
    features = [_draw(B, C, key=m) for m in range(M)]
    return {
        "inject_noise": {"x": _draw(B, M, C), "sigma": 0.5, "seed": seed},
        "reparameterize": {"mu": _draw(B, C), "logvar": _draw(B, C, key=1), "prior_var": 1.0, "seed": seed},
        "noise_regression": {
            "std": _draw(B, C), "weight1": _draw(K, C), "bias1": _draw(K), "weight2": _draw(1, K), "bias2": _draw(1),
            "target": _draw(B, 1), "seed": seed,
        },
        "fusion_weights": {"uncertainty": _draw(B, M)},
        "weighted_fusion": {"features": features, "uncertainty": _draw(B, M)},
        "modality_dropout": {"features": features, "p": 0.5, "seed": seed},
        "evidential_loss": {"evidence": _draw(B, K), "target": torch.arange(B) % K},
        "evidential_fusion": {"evidence": _draw(B, M, K)},
        "normal": {"shape": (B, C), "seed": seed},
        "uniform": {"shape": (B, C), "seed": seed},
    }[op]  # fmt: skip


def _number(i: int) -> float:
    return 0.25 + i / 16


def _number_tensor(i: int) -> Tensor:
    return torch.tensor(_number(i), device="cpu")


def _forms(argument: str, *shapes: tuple, number: bool = True, none: bool = False) -> dict[str, Callable[[int], dict]]:
    """Numbers, tensors of one number on the CPU, tensors of each shape, None: a function of the call's index each."""
    forms: dict[str, Callable[[int], dict]] = {}
    if number:
        forms["number"] = lambda i: {argument: _number(i)}
        forms["number tensor"] = lambda i: {argument: _number_tensor(i)}
    for shape in shapes:
        forms[str(shape)] = lambda i, shape=shape: {argument: _draw(*shape, key=i)}
    if none:
        forms["None"] = lambda i: {argument: None}
    return {f"{argument} {name}": form for name, form in forms.items()}


def _stream() -> dict:
    return {
        "stream": lambda i: {"stream": i + 3},
        "sample_ids": lambda i: {"sample_ids": torch.arange(B) + i},
    }


_WEIGHTING = {
    **_forms("dependency", (M,), (B, M), number=False, none=True),
    "dependency list": lambda i: {"dependency": [_number(i), 1.0, 2.0]},
    "mask": lambda i: {"mask": torch.arange(B * M).reshape(B, M) % (i + 2) != 1},
    "mask None": lambda i: {"mask": None},
    **_forms("temperature"),
    **_forms("total", none=True),
    "all": lambda i: {"temperature": _number(i), "total": _number(i), "dependency": _draw(M, key=i), "g": "inverse"},
}
FORMS: dict[str, dict[str, Callable[[int], dict]]] = {
    "inject_noise": {
        **_forms("sigma", (B,), (B, 1, 1)),
        **{f"sigma {kind}": lambda i, kind=kind: {"sigma": _number(i), "kind": kind, "clamp": (0.0, 1.0)}
           for kind in ("gaussian", "uniform", "speckle", "salt_pepper", "dropout", "replace")},
        "kind (B,)": lambda i: {"kind": (torch.arange(B) + i) % 6, "clamp": (0.0, 1.0)},
        "clamp": lambda i: {"clamp": (-_number(i), _number(i))},
        "clamp tensors": lambda i: {"clamp": (_number_tensor(-i), _number_tensor(i))},
        "normalize numbers": lambda i: {"normalize": (_number(i), _number(i), _number(i + 1))},
        "normalize lists": lambda i: {"normalize": (255.0, [_number(i)] * M, [1.0, 2.0, _number(i)])},
        "normalize tensors": lambda i: {"normalize": (_number(i), _draw(M, key=i), _draw(M, key=i + 1))},
        **_stream(),
    },
    "reparameterize": {
        **_forms("prior_var", (B,), (B, 1)),
        **_forms("std_max", none=True),
        "sample False": lambda i: {"sample": False, "std_max": _number(i)},
        **_stream(),
    },
    "noise_regression": {
        **_forms("dropout_p"),
        **_forms("target", (B,), (B, 1), number=False, none=True),
        "activation": lambda i: {"activation": "gelu", "dropout_p": _number(i) / 2},
        **_stream(),
    },
    "fusion_weights": _WEIGHTING,
    "weighted_fusion": {
        **_WEIGHTING,
        **{f"mode {mode}": lambda i, mode=mode: {"mode": mode, "temperature": _number(i), "residual": True}
           for mode in ("concat", "sum", "scale")},
        "uncertainty (B, M, L)": lambda i: {
            "features": [_draw(B, C, 2, key=m) for m in range(M)], "uncertainty": _draw(B, M, 2, key=i)},
    },
    "modality_dropout": {
        **_forms("p"),
        "p (M,)": lambda i: {"p": _draw(M, key=i) / 2},
        "keep_one": lambda i: {"keep_one": False, "p": _number(i)},
        **_stream(),
    },
    "evidential_loss": {
        **_forms("kl_weight"),
        **{f"reduction {r}": lambda i, r=r: {"reduction": r, "kl_weight": _number(i)} for r in ("none", "sum", "mean")},
    },
    "evidential_fusion": {
        "mask": lambda i: {"mask": torch.arange(B * M).reshape(B, M) % (i + 2) != 1},
        "mask None": lambda i: {"mask": None},
    },
    "normal": _stream(),
    "uniform": _stream(),
}  # fmt: skip


def _run(function: Callable, arguments: dict) -> list[Tensor]:
    """Outputs and the gradients of all float inputs, those of the form under test among them."""
    numbers = ("temperature", "total", "kl_weight", "dropout_p", "std_max", "clamp", "normalize", "p")

    def leaf(value):
        if isinstance(value, Tensor):
            return value.clone().requires_grad_() if value.is_floating_point() and value.dim() else value
        return [leaf(v) for v in value] if isinstance(value, list) and isinstance(value[0], Tensor) else value

    given = {k: v if k in numbers else leaf(v) for k, v in arguments.items()}
    outputs = [v for v in tree_leaves(function(**given)) if isinstance(v, Tensor)]
    leaves = [v for _, v in named_tensors(given) if v.requires_grad]
    through = [o for o in outputs if o.requires_grad]
    grads = torch.autograd.grad([o.square().sum() for o in through], leaves, allow_unused=True) if through else ()
    # A gradient that is None is 0: a graph may know as little about it, or say 0.
    return [*outputs, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]


# What decides about a compilation is the same for all backends, so all forms run on the first of them. The others, of
# which the interpreted one is slow, run the forms that reach a kernel through another overload.
FIRST = BACKENDS[0]
ROWS = [
    (op, form, backend)
    for op, forms in FORMS.items()
    for form in forms
    for backend in BACKENDS
    if backend == FIRST or form in ("all", "clamp", "dropout_p number", "std_max number", "kl_weight number tensor")
]


@pytest.mark.parametrize("op, form, backend", ROWS)
def test_values_change_without_a_third_compilation(op, form, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    eager = getattr(udml_kernels, op)
    compiled = torch.compile(eager, backend=counter, fullgraph=True, dynamic=True)
    with udml_kernels.use_backend(backend):
        for i in range(VALUES):
            arguments = {**_base(op), **FORMS[op][form](i)}
            got, expected = _run(compiled, arguments), _run(eager, arguments)
            assert len(got) == len(expected)
            for one, other in zip(got, expected, strict=True):
                assert same_bits(one, other)
            assert counter.frame_count <= 2, f"call {i} compiled again"
