"""Builds the C++ columns beside the Python package.

Neither torch nor a compiler is required: without them the package is pure Python, serves every op from
the reference, and `python -m udml_kernels info` says why. torch is never imported here, only its headers
and libtorch_cpu.so are used, so an isolated build finds the torch of the interpreter that runs it.

    UDML_KERNELS_CPU = auto (default) | 1 (fail if it cannot be built) | 0 (skip)
    CXX              = the compiler, otherwise g++, c++ or clang++
"""

import os
import platform
import re
import shutil
import site
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))
from build_support import Toolchain, build, write_if_changed  # noqa: E402

# The LibTorch stable ABI of 2.10: one binary for every torch from there on.
TARGET_ABI, OLDEST_TORCH = "0x020a000000000000ULL", (2, 10)

# A library a level: in one library the linker may keep, of an inline function that two levels share,
# the copy with instructions that the processor lacks.
ISA_FLAGS = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512".split(),
    "avx2": "-mavx2 -mfma -mf16c".split(),
    "baseline": [],
}
COMMON_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wno-psabi".split()
COMMON_FLAGS += ["-Werror=return-type", f"-I{ROOT / 'csrc'}"]
# GCC 12 warns about its own AVX-512 headers, which leave a register undefined on purpose.
WARNING_FLAGS = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
MATH_FLAGS = "-fno-math-errno -fno-trapping-math -ffp-contract=fast".split()
LINK_FLAGS = ["-shared", "-Wl,-z,defs"]


class CannotBuild(Exception):
    """Why a column is left out; an error only where it was asked for."""


def wanted(column: str) -> str:
    value = os.environ.get(f"UDML_KERNELS_{column.upper()}", "auto")
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"UDML_KERNELS_{column.upper()}: expected 0, 1 or auto, got {value!r}")
    return value


def find_torch() -> tuple[Path, str]:
    """torch's folder and version. The interpreter's own site-packages count too: pip hides them in a build."""
    spec = find_spec("torch")
    places = [Path(p).parent for p in (spec.submodule_search_locations or ())] if spec else []
    places += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    places += [Path(site.getusersitepackages())] if site.ENABLE_USER_SITE else []
    for place in places:
        version_file = place / "torch" / "version.py"
        if version_file.exists() and (place / "torch" / "include").is_dir():
            version = re.search(r"__version__ = ['\"]([^'\"]+)", version_file.read_text())[1]
            if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
                raise CannotBuild(f"torch {version} is too old, 2.10 or newer is needed")
            return place / "torch", version
    raise CannotBuild("no torch to build against; install torch, then: pip install --no-build-isolation .")


def find_compiler() -> str:
    if not sys.platform.startswith("linux"):
        raise CannotBuild(f"the kernels build on Linux only, not on {sys.platform}")
    asked = os.environ.get("CXX")
    if asked and not shutil.which(asked.split()[0]):
        raise SystemExit(f"CXX: {asked!r} was not found")
    found = asked or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
    if found is None:
        raise CannotBuild("no C++ compiler was found")
    return found


def pybind11_include(torch: Path | None) -> Path | None:
    spec = find_spec("pybind11")
    if spec and spec.origin:
        return Path(spec.origin).parent / "include"
    # torch carries a copy.
    return torch / "include" if torch and (torch / "include" / "pybind11").is_dir() else None


class BuildKernels(build_ext):
    """One rule: a tool that is missing leaves a column out, a tool that fails fails the build."""

    def run(self) -> None:
        # build_py knows where the package lies in this kind of install.
        package = ROOT / "udml_kernels" if self.inplace else Path(self.build_lib).resolve() / "udml_kernels"
        package.mkdir(parents=True, exist_ok=True)
        for stale in (*package.glob("_C_cpu_*.so"), *package.glob("_host.*.so"), *package.glob("_not_built_*.txt")):
            if not self.inplace:
                stale.unlink()
        self.products = []
        torch = self._column("cpu", package, self._build_cpu)
        # The later CUDA column: self._column("cuda", package, self._build_cuda)
        self._build_host(package, torch)

    def _column(self, name: str, package: Path, build_column):
        note = package / f"_not_built_{name}.txt"
        note.unlink(missing_ok=True)
        try:
            if wanted(name) == "0":
                raise CannotBuild(f"UDML_KERNELS_{name.upper()}=0 was set when the package was installed")
            return build_column(package)
        except CannotBuild as reason:
            if wanted(name) == "1":
                raise SystemExit(f"udml-kernels: UDML_KERNELS_{name.upper()}=1, but {reason}") from None
            # What is left of an earlier build would be loaded.
            for stale in package.glob(f"_C_{name}*.so"):
                stale.unlink()
            write_if_changed(note, f"{reason}\n")
            self.products.append(note)
            print(f"udml-kernels: without the {name} kernels: {reason}", file=sys.stderr)
            return None

    def _build_cpu(self, package: Path) -> Path:
        compiler = find_compiler()
        torch, version = find_torch()
        sources = sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
        if not sources:
            raise CannotBuild("this version has no sources in csrc/cpu")
        x86 = platform.machine() in ("x86_64", "AMD64") and sys.maxsize > 2**32
        levels = ISA_FLAGS if x86 else {"baseline": []}
        tools = Toolchain(compiler, ROOT / "build" / f"kernels-torch-{version}")
        flags = [
            *COMMON_FLAGS,
            *WARNING_FLAGS,
            *MATH_FLAGS,
            f"-DTORCH_TARGET_VERSION={TARGET_ABI}",
            "-isystem",
            f"{torch / 'include'}",
        ]
        link = [*LINK_FLAGS, f"-L{torch / 'lib'}", "-ltorch_cpu"]
        for level, isa in levels.items():
            library = package / f"_C_cpu_{level}.so"
            tools.library(library, sources, [*flags, *isa], link, level)
            self.products.append(library)
        build(tools)
        return torch

    def _build_host(self, package: Path, torch: Path | None) -> None:
        """`_host` tells and measures things; nothing needs it, so its absence is no error."""
        include, python = pybind11_include(torch), Path(sysconfig.get_path("include"))
        if torch is None or include is None or not (python / "Python.h").exists():
            return
        _, version = find_torch()
        tools = Toolchain(find_compiler(), ROOT / "build" / f"host-{sys.implementation.cache_tag}")
        facts = {
            "compiler": tools.version(),
            "flags": " ".join(f for f in (*COMMON_FLAGS, *MATH_FLAGS) if not f.startswith("-I")),
            "flags_avx512": " ".join(ISA_FLAGS["avx512"]),
            "flags_avx2": " ".join(ISA_FLAGS["avx2"]),
            "torch": version,
            "target_abi": TARGET_ABI,
        }
        rows = "".join(f'  {{"{key}", R"({value})"}},\n' for key, value in facts.items())
        write_if_changed(tools.folder / "build_facts.inc", rows)
        library = package / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
        flags = [*COMMON_FLAGS, "-pthread", f"-I{tools.folder}", "-isystem", str(include), "-isystem", str(python)]
        # Python's own symbols come from the interpreter at run time.
        tools.library(library, [ROOT / "csrc" / "host" / "host.cpp"], flags, ["-shared", "-pthread"], "host")
        build(tools)
        self.products.append(library)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "products", [])]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc").rglob("*")) if p.is_file()]


# The extension itself is only a name: it makes setuptools run build_ext and tag the wheel by platform.
setup(ext_modules=[Extension("udml_kernels._C_cpu", [])], cmdclass={"build_ext": BuildKernels})
