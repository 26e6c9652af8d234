"""Names and shared fixtures. On the CPU the backend `cuda` is the compiled CUDA kernels, executed by tests/ptx."""

import pytest
import torch

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
