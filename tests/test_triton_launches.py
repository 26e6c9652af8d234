"""How the Triton backend launches: the configuration it chooses, and how many kernels a call takes."""

import os
import subprocess
import sys

import pytest
import torch

import udml_kernels

from . import TRITON
from .backends import BACKENDS, is_executed

if "triton" not in BACKENDS:
    pytest.skip("Triton is not among the backends under test", allow_module_level=True)

from udml_kernels.triton import _launch, _tuning

on_cpu = pytest.mark.skipif(
    not is_executed("triton"),
    reason="runs kernels on the CPU from a launch hook",
)


def test_a_configuration_is_measured_once_and_only_where_it_may_be(monkeypatch):
    timed = []

    def milliseconds(call):
        timed.append(call())
        return {2048: 2.0, 1024: 3.0, 4096: 1.0}[timed[-1].elements]

    monkeypatch.setattr(_tuning, "_milliseconds", milliseconds)
    monkeypatch.setattr(_tuning, "_chosen", {})
    device = torch.device("cpu")
    assert _tuning.tuned("op", torch.float32, 4096, device, lambda c: c) == _tuning.DEFAULT
    assert not timed and not _tuning._chosen, "off unless asked for, and never on the CPU"
    monkeypatch.setattr(_tuning, "_may_measure", lambda device: True)
    assert _tuning.tuned("op", torch.float32, 4096, device, lambda c: c).elements == 4096
    assert len(timed) == len(_tuning.CANDIDATES)
    # One class of sizes; another dtype is measured anew.
    assert _tuning.tuned("op", torch.float32, 5000, device, lambda c: c).elements == 4096
    assert len(timed) == len(_tuning.CANDIDATES)
    _tuning.tuned("op", torch.bfloat16, 5000, device, lambda c: c)
    assert len(timed) == 2 * len(_tuning.CANDIDATES)


@pytest.mark.parametrize("elements", (1024, 4096))
def test_every_configuration_computes_the_same(elements, monkeypatch):
    """The noise bit by bit, sums but for their order."""
    mu, logvar, seed = torch.randn(3, 5, 701), torch.randn(3, 5, 701), torch.tensor([3])
    with udml_kernels.use_backend("triton"):
        expected = udml_kernels.reparameterize(mu, logvar, seed=seed)
        monkeypatch.setattr(_tuning, "DEFAULT", _tuning.Config(elements, 4))
        z, std, kl = udml_kernels.reparameterize(mu, logvar, seed=seed)
    assert torch.equal(z, expected[0])
    torch.testing.assert_close((std, kl), expected[1:], rtol=1e-6, atol=1e-6)


class _Counted:
    """Runs what is launched, and keeps its name."""

    fast = TRITON == "ptx"

    def __init__(self):
        self.names: list[str] = []

    def __call__(self, kernel, programs, args, constants):
        self.names.append(kernel.__name__)
        kernel[(programs,)](*args, **constants)


def _launches(monkeypatch, function) -> tuple[list[str], list[str]]:
    """The kernels of a forward and of its backward, but for sums of what several programs left."""
    counted = _Counted()
    with udml_kernels.use_backend("triton"), monkeypatch.context() as patched:
        patched.setattr(_launch, "listener", counted)
        outputs = function()
        forward, counted.names = counted.names, []
        torch.autograd.backward([o for o in outputs if o.requires_grad], [torch.ones_like(o) for o in outputs])
    return [[n for n in names if n != "_sum_kernel"] for names in (forward, counted.names)]


@on_cpu
@pytest.mark.parametrize("shape", ((3, 33), (3, 5, 49), (2, 3, 700)))
def test_reparameterize_is_one_launch_each_way(shape, monkeypatch):
    mu, logvar = (torch.randn(shape).requires_grad_() for _ in range(2))
    forward, backward = _launches(monkeypatch, lambda: udml_kernels.reparameterize(mu, logvar, seed=torch.tensor([1])))
    assert forward[0] == "_forward_kernel" and forward[1:] in ([], ["_finish_kernel"])
    assert backward == ["_backward_kernel"]


@on_cpu
@pytest.mark.parametrize("shape", ((3, 5, 4, 7), (2, 3, 3, 300)))
def test_reparameterize_with_the_channels_last_is_one_launch_each_way(shape, monkeypatch):
    mu, logvar = (torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    forward, backward = _launches(monkeypatch, lambda: udml_kernels.reparameterize(mu, logvar, seed=torch.tensor([1])))
    assert forward[0] == "_columns_forward_kernel" and forward[1:] in ([], ["_columns_finish_kernel"])
    assert backward == ["_columns_backward_kernel"]


@on_cpu
@pytest.mark.parametrize("mode", ("concat", "sum", "scale"))
@pytest.mark.parametrize("spatial", ((), (7, 3)))
def test_weighted_fusion_is_one_launch_each_way(mode, spatial, monkeypatch):
    features = [torch.randn(3, 40, *spatial).requires_grad_() for _ in range(3)]
    uncertainty = torch.rand(3, 3, *spatial).add(0.5).requires_grad_()

    def function():
        fused, weights = udml_kernels.weighted_fusion(features, uncertainty, mode=mode)
        return (*(fused if mode == "scale" else (fused,)), weights)

    assert _launches(monkeypatch, function) == [["_fuse_kernel"], ["_unfuse_kernel"]]


@on_cpu
def test_inject_noise_is_one_launch_each_way(monkeypatch):
    x, sigma = torch.randn(3, 3, 40).requires_grad_(), torch.rand(3).requires_grad_()
    names = _launches(
        monkeypatch,
        lambda: (udml_kernels.inject_noise(x, sigma, clamp=(-1, 1), normalize=(2, 0.5, 0.5), seed=torch.tensor([1])),),
    )
    assert names == [["_forward_kernel"], ["_backward_kernel"]]


def test_other_streams_and_batches_compile_nothing():
    """A batch that is no multiple of 16 compiles the kernels anew whose masks profit from one that is: 8 of 20 here."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "UDML_TEST_DEVICE": "cpu", "UDML_TEST_BACKENDS": "cpu"}
    command = [sys.executable, "-m", "tests.specialisations"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    first, others, ragged = map(int, result.stdout.split())
    assert first > 15 and others == first and ragged <= first + 8
