"""Names and shared fixtures. On the CPU the backend `cuda` is the compiled CUDA kernels, executed by tests/ptx."""

import pytest
import torch

from udml_kernels import backends

from .backends import display_name
from .threads import single_thread


def pytest_make_parametrize_id(config, val, argname):
    return display_name(val) if argname == "backend" and isinstance(val, str) else None


@pytest.fixture
def one_thread():
    with single_thread():
        yield


@pytest.fixture
def one_thread_and_seed(one_thread):
    torch.manual_seed(0)


@pytest.fixture
def cuda_devices(monkeypatch):
    """As many CUDA devices as the test says, by their compute capability; Triton serves them too."""
    capabilities: list[tuple[int, int]] = []
    monkeypatch.setattr(backends, "_forced", None)
    monkeypatch.setattr(backends, "_refused", {})
    monkeypatch.setitem(backends._unavailable, "cuda", None)
    monkeypatch.setitem(backends._unavailable, "triton", None)
    monkeypatch.setattr(backends, "cuda_facts", {"cuda archs": "sm_80 compute_80", "cuda": "13.0"})
    monkeypatch.setattr(backends, "_driver_version", lambda: (13, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return capabilities
