"""The kernels of csrc/cuda for the CPU: compiled by the C++ compiler against include/, run by scheduler.cpp.

Variants: `plain`; `asan`, where AddressSanitizer and UBSan see accesses out of bounds and misaligned ones, in a
process with `sanitizer_environment()`; `race`, where data races and reads of unwritten shared memory are errors.
"""

import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from unittest import mock

import pybind11
from filelock import FileLock

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "cuda"

FLAGS = "-std=c++17 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -fno-strict-aliasing -ffp-contract=fast"
FLAGS += " -fno-math-errno -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi -Werror=return-type -DUDML_CUDA_HOST"
VARIANT_FLAGS = {
    "plain": "-O2",
    "asan": "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all",
    "race": "-O1 -DUDML_HOST_RACES",
}
LINK_FLAGS = {
    "plain": "",
    "asan": "-fsanitize=address,undefined",
    # Its runtime is tsan.cpp, so no -fsanitize here.
    "race": "-Wl,--wrap=memcpy -Wl,--wrap=memmove -Wl,--wrap=memset",
}
VARIANTS = tuple(VARIANT_FLAGS)


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _build_support() -> ModuleType:
    spec = importlib.util.spec_from_file_location("udml_build_support", ROOT / "build_support.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _module_name(variant: str, kernels: bool) -> str:
    # A name of its own: of two modules with one name pybind11 makes one.
    return f"udml_cuda_host_{variant}" + ("" if kernels else "_faults")


def _fma() -> list[str]:
    """nvcc fuses multiplications with additions, so this compiler had better do so where the processor can."""
    info = Path("/proc/cpuinfo")
    return ["-mfma"] if info.exists() and re.search(r"^flags\s*:.* fma ", info.read_text(), re.M) else []


def _torch_flags() -> tuple[list[str], list[str]]:
    import torch

    folder = Path(torch.__file__).parent
    target = re.search(r'TARGET_ABI.*?"(\w+)"', (ROOT / "setup.py").read_text())[1]
    flags = [f"-DTORCH_TARGET_VERSION={target}", "-isystem", str(folder / "include")]
    return flags, [f"-L{folder / 'lib'}", "-ltorch_cpu"]


def _flags(variant: str, module: str) -> list[str]:
    flags = [*FLAGS.split(), *VARIANT_FLAGS[variant].split(), *_fma(), f"-DUDML_MODULE={module}"]
    flags += ["-include", "cuda_runtime.h", f"-I{HERE / 'include'}", f"-I{ROOT / 'csrc'}"]
    return [*flags, "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


@functools.cache
def build(variant: str, kernels: bool = True) -> Path:
    """The extension module of a variant, compiled where it is out of date: the kernels, or faults.cu and samples.cu."""
    support, module = _build_support(), _module_name(variant, kernels)
    folder = ROOT / "build" / f"cuda-host-{variant}{'' if kernels else '-faults'}"
    flags, link = _flags(variant, module), ["-shared", *LINK_FLAGS[variant].split()]
    sources = sorted(HERE.glob("*.cpp"))
    if kernels:
        torch_flags, torch_link = _torch_flags()
        flags, link = flags + torch_flags, link + torch_link
        sources += sorted((*CUDA.glob("*.cpp"), *CUDA.glob("*.cu")))
    else:
        flags.append("-DUDML_HOST_FAULTS")
        sources += sorted(HERE.glob("*.cu"))
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{module}{sysconfig.get_config_var('EXT_SUFFIX')}"
    with FileLock(folder / "lock"):
        tools = support.Toolchain(_compiler(), folder)
        objects = [_compile(support, tools, source, flags, variant) for source in sources]
        # Moved into place: a process may have the old one mapped.
        linked = folder / "linked.so"
        command = shlex.join([*shlex.split(_compiler()), *map(str, objects), *link, "-o", str(linked)])
        move = f"mv -f {shlex.quote(str(linked))} {shlex.quote(str(library))}"
        tools.links.append(support.Step(library, objects, ["sh", "-c", f"{command} && {move}"]))
        with mock.patch.dict(os.environ):
            # The compiler is not to be sanitized.
            os.environ.pop("LD_PRELOAD", None)
            support.build(tools)
    return library


def _compile(support: ModuleType, tools, source: Path, flags: list[str], variant: str) -> Path:
    output = tools.folder / f"{source.name}.o"
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    # Kernels alone are watched.
    language += ["-fsanitize=thread"] if variant == "race" and source.suffix == ".cu" else []
    depfile = output.with_suffix(".d")
    command = [*shlex.split(tools.compiler), *flags, *language, "-MMD", "-MF", str(depfile)]
    tools.compiles.append(support.Step(output, [source], [*command, "-c", str(source), "-o", str(output)], depfile))
    return output


@functools.cache
def load(variant: str, kernels: bool = True) -> ModuleType:
    """Import a variant, built where needed; with the kernels it serves `udml_kernels::<op>.cuda` for CPU tensors."""
    if kernels:
        import udml_kernels.ops  # noqa: F401  (declares the ops)
    spec = importlib.util.spec_from_file_location(_module_name(variant, kernels), build(variant, kernels))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitizer_environment() -> dict[str, str]:
    """What a process needs in its environment to import the asan variant; its options end it at the first report."""

    def library(name: str) -> str:
        command = [*shlex.split(_compiler()), f"-print-file-name={name}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    # libstdc++ as well, for exceptions: AddressSanitizer looks for __cxa_throw as it starts.
    preload = " ".join(map(library, ("libasan.so", "libubsan.so", "libstdc++.so")))
    options = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return options
