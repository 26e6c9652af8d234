"""The interpreter, for Python. It is one for the process: kernels, options and counts belong to all who use it."""

import ctypes
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from . import build


class Dimensions(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint))


@functools.cache
def library() -> ctypes.CDLL:
    """The interpreter; from its first use on it knows the bounds of every tensor that torch allocates on the CPU."""
    interpreter, torch_memory = build.interpreter()
    # Global: the other library takes two functions of it.
    loaded = ctypes.CDLL(str(interpreter), mode=ctypes.RTLD_GLOBAL)
    for function in ("ptx_load", "ptx_launch", "ptx_statistics", "ptx_kernels", "ptx_uncovered"):
        getattr(loaded, function).restype = ctypes.c_char_p
    pointers = ctypes.POINTER(ctypes.c_void_p)
    loaded.ptx_launch.argtypes = [ctypes.c_char_p, Dimensions, Dimensions, ctypes.c_uint, pointers]
    loaded.ptx_symbol.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    loaded.ptx_track.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    loaded.ptx_untrack.argtypes = [ctypes.c_uint64]
    ctypes.CDLL(str(torch_memory)).ptx_watch_torch()
    return loaded


def load(text: str, name: str) -> None:
    """Parse a PTX module; its kernels can be launched by their names. `name` is what messages call it.

    Raises:
        RuntimeError: for what the interpreter cannot parse or execute, with the line.
    """
    if error := library().ptx_load(text.encode(), name.encode()):
        raise RuntimeError(error.decode())


def load_files(paths: Sequence[Path]) -> None:
    for path in paths:
        load(path.read_text(), path.name)


def parameter_sizes(kernel: str) -> list[int]:
    """Bytes of each parameter of a kernel."""
    sizes = (ctypes.c_int * 1024)()
    count = library().ptx_parameters(kernel.encode(), sizes, len(sizes))
    return list(sizes[:count])


def launch(
    kernel: str, grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Sequence[bytes], shared: int = 0
) -> None:
    """Run a kernel to its end. `arguments` are the parameters as they lie in memory, `shared` the bytes of dynamic
    shared memory.

    Raises:
        RuntimeError: for the first thing that a check finds, with kernel, block, thread and line.
    """
    sizes = parameter_sizes(kernel)
    if [len(argument) for argument in arguments] != sizes:
        raise RuntimeError(f"{kernel}: parameters of {sizes} bytes, got {[len(a) for a in arguments]}")
    buffers = [ctypes.create_string_buffer(argument, max(len(argument), 8)) for argument in arguments]
    pointers = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
    if error := library().ptx_launch(kernel.encode(), Dimensions(*grid), Dimensions(*block), shared, pointers):
        raise RuntimeError(error.decode())


def statistics(clear: bool = False) -> dict:
    """What has run since the counts were last cleared: totals, counts by kernel, findings by kernel."""
    return json.loads(library().ptx_statistics(int(clear)).decode())
