"""The Triton backend for CPU tensors: compiled by Triton to PTX, which the interpreter executes.

To Triton the interpreter is a GPU's driver: it is handed what the kernels were compiled to, and launches them. So a
kernel that a test launches itself runs as well.
"""

import functools
import hashlib
import os
import re
import struct

import triton
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from udml_kernels import backends
from udml_kernels.tools.aot_triton import Driver, target_of
from udml_kernels.triton import _launch

from . import machine
from .build import ROOT

TARGETS = ("sm_80", "sm_90")
TARGET = f"sm_{os.environ.get('UDML_TEST_TARGET', '80')}"
# What an A100 and an H100 have.
_SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
_FORMATS = {
    "i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u1": "<B", "u8": "<B", "u16": "<H", "u32": "<I",
    "u64": "<Q", "fp32": "<f", "fp64": "<d",
}  # fmt: skip


class _Utils:
    """Properties of the device, and the loading of code: the place of CudaUtils."""

    def __init__(self, target: str):
        self._properties = {"max_shared_mem": _SHARED_MEMORY[target], "multiprocessor_count": 1}

    def get_device_properties(self, device: int) -> dict:
        return self._properties

    def load_binary(self, name: str, ptx: bytes, shared: int, device: int) -> tuple:
        text = ptx.decode()
        # Kernels of a name are many, and the interpreter knows them by their names.
        unique = f"{name}_{hashlib.sha256(ptx).hexdigest()[:12]}"
        _load(re.sub(rf"\b{name}\b", unique, text), unique)
        return None, unique, 0, 0, 1024


# PTX by the name of its kernel.
sources: dict[str, str] = {}


def _load(text: str, name: str) -> None:
    if name not in sources:
        machine.load(text, name)
        sources[name] = text


def _pack(kind, value, packed: list[bytes]) -> None:
    """Append the parameters of an argument of a type of Triton's, in the order of the compiled kernel's."""
    if isinstance(kind, tuple):
        for member, part in zip(kind, value, strict=True):
            _pack(member, part, packed)
    elif kind == "constexpr":
        pass
    elif kind[0] == "*":
        packed.append(struct.pack("<Q", value.data_ptr()))
    else:
        packed.append(struct.pack(_FORMATS[kind], value))


class _Launcher:
    """Launches a kernel: the place of CudaLauncher."""

    def __init__(self, source, metadata):
        self._kinds = tuple(source.signature.values())
        self._threads = metadata.num_warps * metadata.target.warp_size
        self._shared = metadata.shared

    def __call__(self, x: int, y: int, z: int, stream, kernel: str, metadata, launch_metadata, enter, leave, *args):
        packed: list[bytes] = []
        _pack(self._kinds, args, packed)
        # The scratch memory of the launch and of a profiler, which these kernels do not use.
        packed += [bytes(8)] * 2
        machine.launch(kernel, (x, y, z), (self._threads, 1, 1), packed, self._shared)


class _Executing(Driver):
    def __init__(self, target: str):
        super().__init__(target_of(target))
        self.utils = _Utils(target)
        self.launcher_cls = _Launcher


class _Listener:
    def __init__(self, fast: bool):
        self.fast = fast

    def __call__(self, kernel, programs: int, args: tuple, constants: dict) -> None:
        kernel[(programs,)](*args, **constants)


def _ptx(self, source: str, metadata: dict, options, capability: int) -> bytes:
    return source.encode()


@functools.cache
def install(target: str = TARGET, fast: bool = os.environ.get("UDML_TEST_TRITON") != "portable") -> None:
    """Serve the ops of the backend `triton` for CPU tensors, in this process.

    `fast`: with the functions that are NVIDIA's alone.
    """
    if _launch.INTERPRETED:
        raise RuntimeError("Triton interprets in this process (TRITON_INTERPRET=1), so it cannot compile")
    # In the place of machine code, which ptxas would make of it.
    CUDABackend.make_cubin = _ptx
    # Compiling is nearly all of the time, so the code is kept from run to run; its other forms would be a gigabyte.
    triton.knobs.cache.dir = str(ROOT / "build" / "triton-cache" / target)
    triton.knobs.compilation.store_binary_only = True
    driver.set_active(_Executing(target))
    # Of a value that every thread of a group has, Triton lets each of them store its copy.
    machine.library().ptx_replicated(1)
    _launch.listener = _Listener(fast)
    backends._unavailable["triton"] = None
    backends._SERVES_NO_CPU.discard("triton")
