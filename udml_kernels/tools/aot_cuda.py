"""The cost of the CUDA kernels: the machine code in `_C_cuda.so`, and the launches that its host code plans.

The library holds every kernel compiled. Its ops are called with CPU tensors while a dry-run launch hook receives the
launches instead of the driver: nothing runs, and no GPU is needed.
"""

import contextlib
import ctypes
import importlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from .. import backends
from .machine_code import Code, disassembled, of_sass

LIBRARY = Path(backends.__file__).parent / "_C_cuda.so"
# kernel name, blocks, threads per block, its machine code
Compiled = tuple[str, int, int, Code]


class Launch(ctypes.Structure):
    """`struct Launch` of csrc/cuda/launch_hook.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kernel", ctypes.c_void_p),
        ("across", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("grid_x", ctypes.c_uint),
        ("grid_y", ctypes.c_uint),
        ("grid_z", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    )


_Hook = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(Launch))
# The number of multiprocessors of an H100 and of an H200. A dry run does not use the grid.
_MULTIPROCESSORS = 132


def why_not() -> str | None:
    """What is missing; None where the library can be read."""
    if not LIBRARY.exists():
        return f"the CUDA backend is {backends.why_unavailable('cuda')}"
    missing = [name for name in ("nvdisasm", "cuobjdump") if shutil.which(name, path=tools_path()) is None]
    missing += [] if shutil.which("nm") else ["nm"]
    return (
        f"{', '.join(missing)} not found (nvdisasm and cuobjdump come with CUDA and with Triton)" if missing else None
    )


def tools_path() -> str | None:
    """The folder of NVIDIA's tools in Triton's wheel; None where those on the PATH are used."""
    spec = find_spec("triton")
    tools = Path(spec.origin).parent / "backends" / "nvidia" / "bin" if spec and spec.origin else None
    return str(tools) if tools and (tools / "nvdisasm").exists() else None


def machine_code(target: str) -> dict[str, tuple[str, str]]:
    """kernel symbol -> (SASS, resource usage)."""
    tools = tools_path()
    cuobjdump = shutil.which("cuobjdump", path=tools)
    assert cuobjdump is not None
    found: dict[str, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [cuobjdump, "-xelf", f"{target}.cubin", str(LIBRARY)], cwd=folder, check=True, capture_output=True
        )
        for cubin in Path(folder).glob("*.cubin"):
            sass, usage = disassembled(cubin.read_bytes(), Path(tools) if tools else None)
            resources = dict(re.findall(r"Function (\S+?):\s*\n\s*(\S.*)", usage))
            for section in re.split(r"^(?=\s*\.section\s+\.text\.)", sass, flags=re.M):
                if match := re.match(r"\s*\.section\s+\.text\.(\S+?),", section):
                    found[match[1]] = section, resources.get(match[1], "")
    return found


def symbols() -> dict[int, str]:
    """Address in the library -> symbol. A kernel's host function has its name, which nvcc 13 marks as internal (L)."""
    listing = subprocess.run(["nm", "--defined-only", str(LIBRARY)], check=True, capture_output=True, text=True).stdout
    return {
        int(address, 16): name.replace("_ZN4udmlL", "_ZN4udml")
        for address, _, name in (line.split() for line in listing.splitlines())
    }


def base() -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(LIBRARY.resolve())):
            return int(line.split("-")[0], 16) - int(line.split()[2], 16)
    raise RuntimeError(f"{LIBRARY.name} is not loaded: {backends.why_unavailable('cuda')}")


def hook_library() -> ctypes.CDLL:
    """The library for `udml_cuda_hook`, which sets the launch hook."""
    library = ctypes.CDLL(str(LIBRARY))
    library.udml_cuda_hook.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return library


@contextlib.contextmanager
def compiling_for(target: str) -> Iterator[Callable]:
    """Yields a function: work -> (results, the kernels that it launches). The results hold no values."""
    if reason := why_not():
        raise RuntimeError(reason)
    code, names, start, heard = machine_code(target), symbols(), base(), []
    if not code:
        raise RuntimeError(f"{LIBRARY.name} holds no code for {target}")

    # This must not raise: an exception would not get through C++.
    def hear(launch) -> None:
        it = launch.contents
        symbol = names.get(it.kernel - start, "unknown")
        heard.append((it.name.decode().split("<")[0], symbol, it.across * it.groups, it.threads))

    def launched(work) -> tuple[object, list[Compiled]]:
        heard.clear()
        importlib.import_module(f"..ops.{work.file}", __package__)
        overload = getattr(torch.ops.udml_kernels, work.op).cuda
        results = overload.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *work.args)
        kernels: list[Compiled] = []
        for name, symbol, blocks, threads in heard:
            if symbol not in code:
                raise RuntimeError(f"{name}: no machine code for {target} under {symbol}")
            kernels.append((name, blocks, threads, of_sass(*code[symbol])))
        return results, kernels

    hook = _Hook(hear)
    library = hook_library()
    library.udml_cuda_hook(ctypes.cast(hook, ctypes.c_void_p), _MULTIPROCESSORS)
    try:
        yield launched
    finally:
        library.udml_cuda_hook(None, 0)
