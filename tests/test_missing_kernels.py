"""An op without a kernel on some backend goes to the next one, in the end to the reference."""

import pytest
import torch

import udml_kernels
from udml_kernels import backends
from udml_kernels.ops import _op

from .backends import BACKENDS, OPS


def _toy_fake(x):
    return x.new_empty(x.shape)


# The module decides where its Triton kernels would be: in udml_kernels.triton.toy, which does not exist.
_toy_fake.__module__ = "udml_kernels.ops.toy"


@pytest.fixture(scope="module")
def toys():
    """Ops that add 1 on the reference and subtract 1 in a kernel. `toy` has a kernel on the CPU alone, `toy_pair` on
    CUDA too, but not the backward op."""
    ops = {name: _op.Op(name, "(Tensor x) -> Tensor", _toy_fake) for name in ("toy", "toy_pair", "toy_pair_backward")}
    for kernel in ("toy.cpu", "toy_pair.cpu", "toy_pair.cuda", "toy_pair_backward.cpu"):
        _op._library.impl(kernel, lambda x: x - 1, "CPU")
    yield ops
    for name in ops:
        del _op.OPS[name]


def _served_toy(op, x):
    backend = backends.select(x.device, op)
    return x + 1 if backend == "reference" else op(backend, x)


@pytest.mark.parametrize("lacks, serves", [("", "cuda"), ("cuda", "triton"), ("cuda triton", "reference")])
def test_an_op_goes_to_the_first_backend_that_has_it(lacks, serves, cuda_devices, monkeypatch):
    cuda_devices += [(9, 0)]
    op, device = OPS["fusion_weights"], torch.device("cuda", 0)
    missing = {name: "the reason" if name in lacks.split() else None for name in backends.KERNEL_BACKENDS}
    monkeypatch.setattr(op, "_missing", missing)
    assert backends.select(device, op) == serves
    assert backends.select(device) == "cuda"


def test_what_is_missing_is_found(toys):
    assert [toys["toy"].why_missing(b) for b in backends.KERNEL_BACKENDS] == [
        None,
        "no kernel is registered as udml_kernels::toy.cuda",
        "there is no module udml_kernels.triton.toy",
    ]
    for op in OPS.values():
        assert all(op.why_missing(backend) is None for backend in BACKENDS if backend != "reference"), op.name


def test_a_file_without_the_ops_function(toys, monkeypatch):
    monkeypatch.setattr(toys["toy"], "_module", "udml_kernels.{}")
    assert toys["toy"]._why_no_kernel("triton") == "udml_kernels.triton has no function toy"


def test_a_forward_op_without_its_backward_op_is_missing(toys, cuda_devices):
    cuda_devices += [(9, 0)]
    assert toys["toy_pair"].why_missing("cpu") is None
    assert toys["toy_pair"].why_missing("cuda") == "no kernel is registered as udml_kernels::toy_pair_backward.cuda"
    assert backends.select(torch.device("cuda", 0), toys["toy_pair"]) == "reference"


@pytest.mark.parametrize("compiled", [False, True])
def test_an_op_that_its_backend_lacks_is_served_by_the_reference(compiled, toys, monkeypatch):
    monkeypatch.setattr(backends, "_forced", None)
    monkeypatch.setitem(backends._unavailable, "cpu", None)
    served = torch.compile(_served_toy, fullgraph=True, backend="eager") if compiled else _served_toy
    assert served(toys["toy"], torch.ones(2)).tolist() == [0, 0]
    monkeypatch.setitem(toys["toy"]._missing, "cpu", "the reason")
    torch.compiler.reset()
    assert served(toys["toy"], torch.ones(2)).tolist() == [2, 2]


def test_a_chosen_backend_that_lacks_the_op_is_an_error(toys, monkeypatch):
    monkeypatch.setitem(backends._unavailable, "cpu", None)
    monkeypatch.setitem(toys["toy"]._missing, "cpu", "the reason")
    message = "toy: backend 'cpu' lacks this op: the reason; choose another backend, or none"
    with udml_kernels.use_backend("cpu"), pytest.raises(NotImplementedError, match=message):
        _served_toy(toys["toy"], torch.ones(2))
    monkeypatch.setattr(backends, "_forced", "cpu")
    with pytest.raises(NotImplementedError, match=message):
        _served_toy(toys["toy"], torch.ones(2))
    with udml_kernels.use_backend("reference"):
        assert _served_toy(toys["toy"], torch.ones(2)).tolist() == [2, 2]
