"""Several calls of an op in one launch a kernel. Only the CUDA backend can: csrc/cuda/together.h."""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from functools import cache

from .. import backends


@cache
def _library() -> ctypes.PyDLL:
    # Not CDLL: releasing Python's lock would take longer than the functions do.
    library = ctypes.PyDLL(str(backends.CUDA_LIBRARY))
    library.udml_cuda_launch.restype = ctypes.c_char_p
    return library


class _Together:
    """What is called in this context is not launched before its end, so nothing in it may read a result."""

    def __enter__(self) -> None:
        _library().udml_cuda_collect()

    def __exit__(self, error: type | None, *_) -> None:
        # After an error nothing is launched.
        message = _library().udml_cuda_launch(error is None)
        if message is not None and error is None:
            raise RuntimeError(message.decode())


_TOGETHER, _APART = _Together(), nullcontext()


def together(backend: str) -> AbstractContextManager:
    """A context in which equal kernels of several calls of an op become one launch, where the backend has that."""
    return _TOGETHER if backend == "cuda" else _APART
