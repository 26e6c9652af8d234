"""Compile the interpreter, and the PTX of csrc/cuda for a target; only what is out of date."""

import functools
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock

from udml_kernels import backends

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent

# Strict floating point: the interpreter's own arithmetic must be what the instruction says.
FLAGS = "-std=c++17 -O3 -mavx2 -mfma -mf16c -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off"
FLAGS += " -fno-math-errno -fno-trapping-math -Wall -Wextra"


def _build_support() -> ModuleType:
    spec = importlib.util.spec_from_file_location("udml_build_support", ROOT / "build_support.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


support = _build_support()


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


@functools.cache
def interpreter() -> tuple[Path, Path]:
    """The interpreter's library, and the one that tells it of torch's allocations."""
    folder = ROOT / "build" / "ptx-interpreter"
    library, memory = folder / "libptx.so", folder / "libptx_torch_memory.so"
    sources = sorted((HERE / "interpreter").glob("*.cpp"))
    watcher = HERE / "interpreter" / "torch_memory.cpp"
    sources.remove(watcher)
    tools = support.Toolchain(_compiler(), folder)
    tools.library(library, sources, [*FLAGS.split(), "-iquote", str(CSRC)], ["-shared"], "interpreter")
    torch_flags = ["-isystem", str(TORCH / "include")]
    link = ["-shared", f"-L{TORCH / 'lib'}", "-lc10"]
    tools.library(memory, [watcher], [*FLAGS.split(), *torch_flags], link, "memory")
    with FileLock(folder / "lock"):
        support.build(tools)
    return library, memory


def _ptx(sources: list[Path], target: int, folder: str, flags: list[str]) -> list[Path]:
    """The PTX of each source for compute_<target>, in build/<folder>."""
    tools = support.Toolchain(shlex.quote(str(support.find_nvcc().path)), ROOT / "build" / folder)
    outputs = []
    for source in sources:
        output = tools.folder / f"{source.stem}.ptx"
        depfile = output.with_suffix(".d")
        command = [*shlex.split(tools.compiler), *flags, "-lineinfo", "-ptx", f"-arch=compute_{target}"]
        command += ["-MMD", "-MT", str(output), "-MF", str(depfile), str(source), "-o", str(output)]
        tools.compiles.append(support.Step(f"{folder} {source.name}", output, [source], command, depfile))
        outputs.append(output)
    with FileLock(tools.folder / "lock"):
        support.build(tools)
    return outputs


def _product_flags() -> list[str]:
    """The flags that built `_C_cuda.so`."""
    abi = re.search(r'TARGET_ABI.*?"(\w+)"', (ROOT / "setup.py").read_text())
    assert abi
    flags = [*shlex.split(backends.cuda_facts["cuda flags"]), "-Xcompiler=-iquote", f'-Xcompiler="{CSRC}"']
    return [*flags, f"-DTORCH_TARGET_VERSION={abi[1]}", "-isystem", str(TORCH / "include")]


@functools.cache
def cuda_ptx(target: int) -> list[Path]:
    """The PTX of each file of csrc/cuda for compute_<target>."""
    # The longest file first, as ninja starts them in this order.
    sources = sorted((CSRC / "cuda").glob("*.cu"), key=lambda source: -source.stat().st_size)
    return _ptx(sources, target, f"ptx-cuda-{target}", _product_flags())


@functools.cache
def normals_ptx(target: int) -> Path:
    """The PTX of normals.cu, with the product's functions in it."""
    return _ptx([HERE / "normals.cu"], target, f"ptx-normals-{target}", _product_flags())[0]


@functools.cache
def faults_ptx() -> Path:
    """The PTX of the kernels with planted faults."""
    return _ptx([HERE / "faults.cu"], 80, "ptx-faults", ["-std=c++17", "-O3", "-diag-suppress", "550"])[0]
