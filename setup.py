"""Build the compiled backends beside the Python package.

A wheel, and so `pip install .`, always holds the CPU kernels, unless UDML_KERNELS_CPU=0 asks for one without. An
editable install needs neither torch nor a compiler: without them the package is pure Python, serves every op from
the reference, and `python -m udml_kernels info` says why. torch is never imported here, only its headers
and libtorch_cpu.so are used, so a build in pip's isolation finds the torch of the interpreter that runs it. Likewise
for CUDA: only nvcc is needed, neither a GPU nor a torch with CUDA.

    UDML_KERNELS_CPU, UDML_KERNELS_CUDA = auto (default) | 1 (fail if it cannot be built) | 0 (skip)
    UDML_KERNELS_CUDA_ARCHS = e.g. "80 90"; otherwise those of 80, 90, 100 and 120 that nvcc knows. PTX is built too,
                              for the newest up to 100: PTX of a newer one would not run on devices in between
    CUDA_HOME, CUDA_PATH    = the toolkit, otherwise nvcc from PATH or from the pip packages in requirements-cuda.txt
    CXX                     = the compiler, nvcc's host compiler too; otherwise g++, c++ or clang++
"""

import os
import platform
import re
import shlex
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import setuptools

# An older setuptools rejects the license field of pyproject.toml, with a message of ninety lines that does not say why.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(f"udml-kernels: setuptools 77 or newer is needed, not {setuptools.__version__}: pip install -U setuptools")

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
sys.path.insert(0, str(ROOT))
from build_support import (  # noqa: E402
    CannotBuild,
    Nvcc,
    Toolchain,
    build,
    find_nvcc,
    site_packages,
    timed,
    write_if_changed,
)

# The LibTorch stable ABI of 2.10: one binary for every torch from that version on.
TARGET_ABI, OLDEST_TORCH = "0x020a000000000000ULL", (2, 10)

# One library per ISA level: within one library, the linker keeps a single copy of an inline function that two levels
# share, and that copy may use instructions that the processor lacks.
ISA_FLAGS = {
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512".split(),
    "avx2": "-mavx2 -mfma -mf16c".split(),
    "baseline": [],
}
LANGUAGE_FLAGS = ["-std=c++17", "-O3"]
HOST_FLAGS = "-fPIC -fvisibility=hidden -fvisibility-inlines-hidden -Wall -Wextra -Wno-psabi".split()
HOST_FLAGS += ["-Werror=return-type"]
COMMON_FLAGS = [*LANGUAGE_FLAGS, *HOST_FLAGS]
# Not -I: CUDA's headers include <math.h>, and csrc has a file of that name.
INCLUDE_FLAGS = ["-iquote", str(CSRC)]
# GCC 12 warns about its own AVX-512 headers, which leave a register uninitialised on purpose.
WARNING_FLAGS = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
MATH_FLAGS = "-fno-math-errno -fno-trapping-math -ffp-contract=fast".split()
LINK_FLAGS = ["-shared", "-Wl,-z,defs"]
# With csrc/cpu/glibc.cpp: the libraries run on older systems than the one that builds them.
GLIBC_FLAGS = ["-include", str(CSRC / "cpu" / "glibc.h")]

CUDA_ARCHS = (80, 90, 100, 120)
# PTX runs on devices from its own architecture on: that of 120 would exclude 11.x.
PTX_ARCH = 100
NVCC_FLAGS = [*LANGUAGE_FLAGS, "--expt-relaxed-constexpr", "--extended-lambda", f"-Xcompiler={','.join(HOST_FLAGS)}"]
# nvcc splits the options that it passes on at spaces, so the path is quoted.
NVCC_INCLUDE_FLAGS = ["-Xcompiler=-iquote", f'-Xcompiler="{CSRC}"']
# The static runtime, as torch's own runtime may be of another CUDA release, or missing.
NVCC_LINK_FLAGS = ["-shared", "-cudart=static", "-Xlinker=-zdefs"]


def wanted(column: str) -> str:
    value = os.environ.get(f"UDML_KERNELS_{column.upper()}", "auto")
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"UDML_KERNELS_{column.upper()}: expected 0, 1 or auto, got {value!r}")
    return value


def find_torch() -> tuple[Path, str]:
    """torch's folder and version."""
    for place in site_packages("torch"):
        version_file = place / "torch" / "version.py"
        if version_file.exists() and (place / "torch" / "include").is_dir():
            version = re.search(r"__version__ = ['\"]([^'\"]+)", version_file.read_text())[1]
            if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
                raise CannotBuild(f"torch {version} is too old, 2.10 or newer is needed")
            return place / "torch", version
    raise CannotBuild("no torch to build against; install torch 2.10 or newer")


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


def pybind11_include() -> Path | None:
    spec = find_spec("pybind11")
    if spec and spec.origin:
        return Path(spec.origin).parent / "include"
    # torch carries a copy.
    try:
        found = find_torch()[0] / "include"
    except CannotBuild:
        return None
    return found if (found / "pybind11").is_dir() else None


def torch_flags(torch: Path) -> list[str]:
    return [f"-DTORCH_TARGET_VERSION={TARGET_ABI}", "-isystem", f"{torch / 'include'}"]


def cuda_codes(nvcc: Nvcc) -> dict[int, list[str]]:
    """The codes to compile for each architecture: 90: ["sm_90"], and for one of them also compute_90, its PTX."""
    archs = cuda_archs(nvcc)
    ptx = max((arch for arch in archs if arch <= PTX_ARCH), default=archs[0])
    return {arch: [f"sm_{arch}"] + ([f"compute_{arch}"] if arch == ptx else []) for arch in archs}


def cuda_archs(nvcc: Nvcc) -> list[int]:
    known, asked = nvcc.architectures(), os.environ.get("UDML_KERNELS_CUDA_ARCHS")
    if asked is None:
        archs = [arch for arch in CUDA_ARCHS if arch in known]
        if not archs:
            raise CannotBuild(f"{nvcc.path} knows none of sm_{', sm_'.join(map(str, CUDA_ARCHS))}")
        return archs
    archs = sorted({int(arch) if arch.isdecimal() else 0 for arch in asked.replace(",", " ").split()})
    # Older architectures lack instructions that the kernels use.
    known = [arch for arch in known if arch >= min(CUDA_ARCHS)]
    if not archs or not set(archs) <= set(known):
        choice = " ".join(map(str, known))
        raise SystemExit(f"UDML_KERNELS_CUDA_ARCHS: expected some of {choice} ({nvcc.path}), got {asked!r}")
    return archs


def nvcc_command(nvcc: Nvcc) -> str:
    """nvcc with its host compiler, unless that is g++: CXX may hold a wrapper and flags beside the compiler."""
    compiler = shlex.split(find_compiler())
    if not os.environ.get("CXX") and (compiler == ["g++"] or os.environ.get("NVCC_CCBIN")):
        return shlex.quote(str(nvcc.path))
    if Path(compiler[0]).name in ("ccache", "sccache") and len(compiler) > 1:
        del compiler[0]
    return shlex.join([str(nvcc.path), "-ccbin", compiler[0], *(f"-Xcompiler={flag}" for flag in compiler[1:])])


def facts_source(backend: str, facts: dict[str, str]) -> str:
    """The source of what `udml_kernels.backends` reads as its `<backend>_facts`, compiled into the library itself."""
    rows = "".join(f"{key}\t{value}\n" for key, value in facts.items())
    name = f'extern "C" __attribute__((visibility("default"))) const char* udml_{backend}_facts()'
    return f'// Written by setup.py.\n{name} {{ return R"facts({rows})facts"; }}\n'


WITHOUT_KERNELS = (
    "The build looks for torch in its own environment and in that of the pip that runs it "
    "(`python -m build` needs --no-isolation). UDML_KERNELS_CPU=0 builds a package without kernels, in which the "
    "reference serves every op"
)


class BuildKernels(build_ext):
    """A missing tool leaves a backend out, but no wheel without the CPU kernels; a tool that fails ends the build."""

    def run(self) -> None:
        # Where the package lies depends on the kind of install.
        package = ROOT / "udml_kernels" if self.inplace else Path(self.build_lib).resolve() / "udml_kernels"
        package.mkdir(parents=True, exist_ok=True)
        for pattern in ("_C_cpu_*.so", "_C_cuda*.so", "_host.*.so", "_not_built_*.txt"):
            for stale in () if self.inplace else package.glob(pattern):
                stale.unlink()
        self.products = []
        self._column("cpu", package, self._build_cpu)
        self._column("cuda", package, self._build_cuda)
        if self.inplace:
            self._build_host(package)

    def _column(self, name: str, package: Path, build_column) -> None:
        note = package / f"_not_built_{name}.txt"
        note.unlink(missing_ok=True)
        try:
            if wanted(name) == "0":
                raise CannotBuild(f"UDML_KERNELS_{name.upper()}=0 was set when the package was installed")
            build_column(package)
        except CannotBuild as reason:
            if wanted(name) == "1":
                raise SystemExit(f"udml-kernels: UDML_KERNELS_{name.upper()}=1, but {reason}") from None
            if name == "cpu" and wanted(name) == "auto" and not self.inplace:
                raise SystemExit(f"udml-kernels: no wheel without kernels: {reason}. {WITHOUT_KERNELS}") from None
            # Libraries of an earlier build would be loaded.
            for stale in package.glob(f"_C_{name}*.so"):
                stale.unlink()
            write_if_changed(note, f"{reason}\n")
            self.products.append(note)
            print(f"udml-kernels: without the {name} kernels: {reason}", file=sys.stderr)

    def _build_cpu(self, package: Path) -> None:
        compiler = find_compiler()
        torch, version = find_torch()
        sources = sorted((CSRC / "cpu").glob("*.cpp"))
        if not sources:
            raise CannotBuild("this version has no sources in csrc/cpu")
        x86 = platform.machine() in ("x86_64", "AMD64") and sys.maxsize > 2**32
        levels = ISA_FLAGS if x86 else {"baseline": []}
        tools = Toolchain(compiler, ROOT / "build" / f"kernels-torch-{version}")
        flags = [*COMMON_FLAGS, *WARNING_FLAGS, *MATH_FLAGS, *GLIBC_FLAGS, *INCLUDE_FLAGS, *torch_flags(torch)]
        facts = {
            "compiler": tools.version(),
            "flags": " ".join([*COMMON_FLAGS, *MATH_FLAGS]),
            "flags_avx512": " ".join(ISA_FLAGS["avx512"]),
            "flags_avx2": " ".join(ISA_FLAGS["avx2"]),
            "torch": version,
            "target_abi": TARGET_ABI,
        }
        listing = tools.folder / "build_facts.cpp"
        write_if_changed(listing, facts_source("cpu", facts))
        link = [*LINK_FLAGS, f"-L{torch / 'lib'}", "-ltorch_cpu"]
        for level, isa in levels.items():
            library = package / f"_C_cpu_{level}.so"
            tools.library(library, [*sources, listing], [*flags, *isa], link, level)
            self.products.append(library)
        with timed(f"the CPU kernels ({', '.join(levels)}) with {compiler} and torch {version}"):
            build(tools)

    def _build_cuda(self, package: Path) -> None:
        """Uses plain nvcc: torch's CUDAExtension refuses to build beside a torch without CUDA."""
        sources = [p for p in (CSRC / "cuda").glob("*") if p.suffix in (".cu", ".cpp")]
        # The longest file first, as ninja starts them in this order.
        sources.sort(key=lambda source: (-source.stat().st_size, source.name))
        if not sources:
            raise CannotBuild("this version has no sources in csrc/cuda")
        find_compiler()
        torch, version = find_torch()
        nvcc = find_nvcc()
        codes = cuda_codes(nvcc)
        # Also passed for linking: otherwise nvcc adds code for an architecture of its own choice.
        targets = [f"-gencode=arch=compute_{arch},code=[{','.join(code)}]" for arch, code in codes.items()]
        # With more processors than files, nvcc compiles the architectures of a file in parallel.
        threads = max(1, min(len(targets), (os.cpu_count() or 1) // len(sources)))
        tools = Toolchain(nvcc_command(nvcc), ROOT / "build" / f"cuda-{nvcc.release.split()[-1]}-torch-{version}")
        flags = [*NVCC_FLAGS, *NVCC_INCLUDE_FLAGS, f"--threads={threads}", *targets, *torch_flags(torch)]
        facts = {
            "cuda": ".".join(map(str, nvcc.version)),
            "nvcc": nvcc.release,
            "cuda archs": " ".join(name for code in codes.values() for name in code),
            "cuda flags": " ".join(NVCC_FLAGS),
            "cuda torch": version,
        }
        listing = tools.folder / "build_facts.cpp"
        write_if_changed(listing, facts_source("cuda", facts))
        library = package / "_C_cuda.so"
        link = [*NVCC_LINK_FLAGS, *targets, *nvcc.link_flags(), f"-L{torch / 'lib'}", "-ltorch_cpu"]
        tools.library(library, [*sources, listing], flags, link, "cuda")
        try:
            with timed(f"the CUDA kernels ({facts['cuda archs']}, minutes for each) with {nvcc.path}"):
                build(tools)
        except SystemExit as failure:
            raise SystemExit(f"{failure}; UDML_KERNELS_CUDA=0 leaves the CUDA kernels out") from None
        self.products.append(library)

    def _build_host(self, package: Path) -> None:
        """`_host` measures this machine for the benchmarks. It depends on the version of Python, so wheels are without
        it; no op depends on it, so its absence is not an error."""
        include, python = pybind11_include(), Path(sysconfig.get_path("include"))
        try:
            compiler = find_compiler()
        except CannotBuild:
            return
        if wanted("cpu") == "0" or include is None or not (python / "Python.h").exists():
            return
        tools = Toolchain(compiler, ROOT / "build" / f"host-{sys.implementation.cache_tag}")
        library = package / f"_host{sysconfig.get_config_var('EXT_SUFFIX')}"
        flags = [*COMMON_FLAGS, "-pthread", *INCLUDE_FLAGS, "-isystem", str(include), "-isystem", str(python)]
        # Python's own symbols come from the interpreter at run time.
        tools.library(library, [CSRC / "host" / "host.cpp"], flags, ["-shared", "-pthread"], "host")
        build(tools)
        self.products.append(library)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "products", [])]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in sorted(CSRC.rglob("*")) if p.is_file()]


class TagWheel(bdist_wheel):
    """The kernels use torch's stable ABI and no symbol of Python: one wheel serves every version of both."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# The extension itself is only a name: it makes setuptools run build_ext and tag the wheel by platform.
setup(
    ext_modules=[Extension("udml_kernels._C_cpu", [])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagWheel},
)
