"""Hands the arguments of every kernel to the launcher that Triton compiles for it, with a driver that launches nothing.

What `aot` leaves untried of a launch: that Triton's C code takes these arguments apart, nested tuples and None among
them. `python -m tests.launchers FOLDER` prints how many launches the driver received; it needs gcc and no GPU.
"""

import ctypes
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch
import triton
from triton.backends.nvidia.driver import make_launcher

from udml_kernels.testing.ops import OPS
from udml_kernels.tools import aot_triton
from udml_kernels.tools.aot import works

DRIVER = """
#include "cuda.h"
int launches = 0;
CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  launches += config->gridDimX > 0 && parameters != 0;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* result, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr*)result = pointer;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) { *context = (CUcontext)1; return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult code, const char** text) { *text = "no driver"; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int ordinal) { *device = ordinal; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return cuCtxGetCurrent(context); }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) { return CUDA_SUCCESS; }
"""


class Launchers:
    """In the place of aot's listener: compiles a kernel's launcher, and calls it."""

    fast = True

    def __init__(self, target):
        self.trips: dict = {}
        self.heard: list = []
        self.modules: dict = {}

    def __call__(self, kernel, programs: int, args: tuple, constants: dict) -> None:
        compiled = kernel.run(*args, grid=(programs,), warmup=True, **constants)
        source = compiled.src
        fixed = {(source.fn.arg_names.index(k),) if isinstance(k, str) else k: v for k, v in source.constants.items()}
        module = self.built(make_launcher(fixed, dict(source.signature), None))
        bound, _, _ = kernel.device_caches[0][-1](*args, **constants)
        grid, no_scratch, no_hooks = (programs, 1, 1), (None, None), (None, None, None)
        module.launch(*grid, 0, 1, False, False, *no_scratch, compiled.packed_metadata, *no_hooks, *bound.values())
        self.heard.append(kernel.__name__)

    def built(self, code: str):
        if code not in self.modules:
            file = FOLDER / f"launcher{len(self.modules)}.so"
            _compile(code, file, "-I", sysconfig.get_path("include"))
            spec = importlib.util.spec_from_file_location("__triton_launcher", file)
            assert spec is not None and spec.loader is not None
            self.modules[code] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.modules[code])
        return self.modules[code]


def _compile(code: str, output: Path, *options: str) -> None:
    source = output.with_suffix(".c")
    source.write_text(code)
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    command = ["gcc", "-shared", "-fPIC", "-w", "-I", str(headers), *options, str(source), "-o", str(output)]
    subprocess.run(command, check=True)


def main() -> None:
    library = FOLDER / "libcuda.so.1"
    _compile(DRIVER, library, "-Wl,-soname,libcuda.so.1")
    # Under its name, so that a launcher's dlopen finds it in the place of a real one.
    driver = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    aot_triton._Listener = Launchers  # type: ignore[assignment, misc]
    heard = 0
    with aot_triton.compiling_for("sm_90") as compiled:
        for dtype in (torch.float32, torch.bfloat16):
            for work in works(list(OPS), dtype):
                _, kernels = compiled(work)
                heard += len(kernels)
    received = ctypes.c_int.in_dll(driver, "launches").value
    print(f"{received} of {heard} launches")


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    main()
