"""Random number generators of other libraries, on one core each: NumPy's SFC64, and oneMKL where it is installed."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy

# Constants from mkl_vsl_defines.h.
_PHILOX4X32X10, _GAUSSIAN_ICDF, _UNIFORM_STD = 16 << 20, 2, 0
_SEQUENTIAL = 1


def generators(kind: str, count: int) -> dict[str, Callable[..., object]]:
    """Calls by name that each make `count` float32 numbers, "normal" or "uniform", in a new array."""
    rng = numpy.random.Generator(numpy.random.SFC64(0))
    draw = rng.standard_normal if kind == "normal" else rng.random
    found: dict[str, Callable[..., object]] = {"NumPy SFC64": lambda *_: draw(count, dtype=numpy.float32)}
    if _onemkl() is not None:
        found["oneMKL Philox"] = _onemkl_call(kind, count)
    return found


@cache
def _onemkl() -> ctypes.CDLL | None:
    """The library of pip's mkl package; None where it is not installed."""
    for path in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        library = ctypes.CDLL(str(path))
        # Before any other call: the default would load a second OpenMP runtime into the process.
        library.MKL_Set_Threading_Layer(_SEQUENTIAL)
        return library
    return None


def _onemkl_call(kind: str, count: int) -> Callable[..., object]:
    library, stream = _onemkl(), ctypes.c_void_p()
    assert library is not None
    if library.vslNewStream(ctypes.byref(stream), _PHILOX4X32X10, 0):
        raise RuntimeError("oneMKL: vslNewStream failed")
    name, method, a, b = ("Gaussian", _GAUSSIAN_ICDF, 0, 1) if kind == "normal" else ("Uniform", _UNIFORM_STD, 0, 1)
    draw = getattr(library, f"vsRng{name}")

    def call(*_: object) -> numpy.ndarray:
        values = numpy.empty(count, dtype=numpy.float32)
        failed = draw(method, stream, count, ctypes.c_void_p(values.ctypes.data), ctypes.c_float(a), ctypes.c_float(b))
        if failed:
            raise RuntimeError(f"oneMKL: vsRng{name} failed with {failed}")
        return values

    return call
