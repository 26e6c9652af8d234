"""The interpreter, for Python. It is one for the process: kernels, options and counts belong to all who use it."""

import contextlib
import ctypes
import functools
import json
from collections.abc import Iterator, Sequence
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
    loaded.ptx_barrier.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    loaded.ptx_restore.restype = None
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


# In the order of the interpreter's `Approximate`.
APPROXIMATE = ("exact", "random", "plus", "minus")
# In the order of ptx_settings.
_SETTINGS = (
    "races", "approximate", "statistics", "reverse_warps", "reverse_blocks", "lenient", "replicated", "sampled",
)  # fmt: skip


@contextlib.contextmanager
def options(
    *,
    races: bool | None = None,
    approximate: str | None = None,
    statistics: int | None = None,
    reverse_warps: bool | None = None,
    reverse_blocks: bool | None = None,
    lenient: bool | None = None,
    replicated: bool | None = None,
    sampled: int | None = None,
) -> Iterator[None]:
    """Options of the interpreter, until the end of the `with`. What is None stays as it is.

    Args:
        races: Whether to look for races and for reads of shared memory that nobody has written; True at first.
        approximate: How approximate instructions err (ex2, lg2, sin, cos, sqrt, rcp, rsqrt, tanh, div): "exact", the C
            library's results, at first; by the error that the PTX ISA documents with a "random" sign that depends on
            the argument; by that error "plus" or "minus".
        statistics: 0 at first; 1 counts memory traffic too, 2 which instructions are reached.
        reverse_warps: Whether the warps of a block run in reverse order.
        reverse_blocks: Whether the blocks of a grid run in reverse order.
        lenient: Whether reads of global memory out of bounds, and writes of several threads of a block to one place by
            one instruction, are findings (`statistics()["findings"]`) instead of errors.
        replicated: Whether threads of a block may write the same value to one place by one instruction, as Triton's do
            that have copies of a value.
        sampled: Only so many blocks at each end of a grid run; 0 at first: all.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if approximate is not None:
        given["approximate"] = APPROXIMATE.index(approximate)
    values = (ctypes.c_int * len(_SETTINGS))()
    library().ptx_settings(values)
    before = list(values)
    _set(dict(zip(_SETTINGS, before, strict=True)) | given)
    try:
        yield
    finally:
        _set(dict(zip(_SETTINGS, before, strict=True)))


def _set(settings: dict[str, int]) -> None:
    values = [int(settings[name]) for name in _SETTINGS]
    races, approximate, counted, reverse_warps, reverse_blocks, lenient, replicated, sampled = values
    library().ptx_options(races, approximate, counted, reverse_warps | reverse_blocks << 1)
    library().ptx_lenient(lenient)
    library().ptx_replicated(replicated)
    library().ptx_sample(sampled)


@contextlib.contextmanager
def without_barrier(kernel: str, number: int) -> Iterator[int]:
    """Leave out a barrier of a kernel, for mutation tests; yields its line in the PTX, 0 if there are fewer."""
    try:
        yield library().ptx_barrier(kernel.encode(), number, 1)
    finally:
        library().ptx_restore()


def statistics(clear: bool = False) -> dict:
    """What has run since the counts were last cleared: totals, counts by kernel, findings by kernel."""
    return json.loads(library().ptx_statistics(int(clear)).decode())


def kernels() -> list[str]:
    """The names of all kernels that were loaded."""
    return [line.split()[0] for line in library().ptx_kernels().decode().splitlines()]
