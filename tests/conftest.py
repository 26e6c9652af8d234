"""Names: on the CPU the backend `cuda` is the CUDA kernels executed on the host."""

from .backends import display_name


def pytest_make_parametrize_id(config, val, argname):
    return display_name(val) if argname == "backend" and isinstance(val, str) else None
