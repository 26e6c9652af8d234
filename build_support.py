"""Compile and link a few shared libraries: with ninja if it is available, else in a thread pool.

`python build_support.py` reports which nvcc a build uses, and fails if there is none.
"""

import os
import re
import shlex
import shutil
import signal
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

OLDEST_NVCC = (12, 0)
# Files that nvcc needs in addition, by the pip package that contains them.
PIP_TOOLKIT = {
    "nvidia-nvvm": "nvvm/bin/cicc",
    "nvidia-cuda-crt": "include/crt/host_config.h",
    "nvidia-cuda-runtime": "lib/libcudart_static.a",
    "nvidia-cuda-cccl": "include/cccl",
}


class CannotBuild(Exception):
    """The reason why a backend is left out; an error only if that backend was requested."""


@dataclass
class Step:
    name: str
    output: Path
    inputs: list[Path]
    command: list[str]
    depfile: Path | None = None


@dataclass
class Toolchain:
    compiler: str
    folder: Path
    compiles: list[Step] = field(default_factory=list)
    links: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def version(self) -> str:
        command = [*shlex.split(self.compiler), "--version"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]

    def library(self, output: Path, sources: list[Path], flags: list[str], link_flags: list[str], variant: str) -> None:
        """Compile `sources` with `flags` into separate object files and link them."""
        compiler, objects = shlex.split(self.compiler), []
        for source in sources:
            # The whole name: a .cu and a .cpp file may have the same stem.
            object_file = self.folder / variant / f"{source.name}.o"
            depfile = object_file.with_suffix(".d")
            # The target in make's syntax: nvcc itself does not escape a space in it.
            target = str(object_file).replace(" ", "\\ ")
            command = [*compiler, *flags, "-MMD", "-MT", target, "-MF", str(depfile)]
            command += ["-c", str(source), "-o", str(object_file)]
            self.compiles.append(Step(f"{variant} {source.name}", object_file, [source], command, depfile))
            objects.append(object_file)
        # Linked elsewhere and then moved into place: a process may have the old library mapped.
        linked = self.folder / variant / output.name
        link = shlex.join([*compiler, *map(str, objects), *link_flags, "-o", str(linked)])
        command = ["sh", "-c", f"{link} && mv -f {shlex.quote(str(linked))} {shlex.quote(str(output))}"]
        self.links.append(Step(output.name, output, objects, command))


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def site_packages(package: str) -> list[Path]:
    """Where `package` may be. The interpreter's own site-packages is included: pip hides it during a build."""
    spec = find_spec(package)
    places = [Path(p).parent for p in (spec.submodule_search_locations or ())] if spec else []
    places += [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return places + ([Path(site.getusersitepackages())] if site.ENABLE_USER_SITE else [])


@dataclass
class Nvcc:
    path: Path
    version: tuple[int, int]
    release: str

    def link_flags(self) -> list[str]:
        """The libraries of the pip packages are in lib/, where the packages' nvcc does not look."""
        libraries = self.path.parents[1] / "lib"
        return [f"-L{libraries}"] if (libraries / "libcudart_static.a").exists() else []

    def architectures(self) -> list[int]:
        """The architectures it compiles for, e.g. 90 for sm_90."""
        command = [str(self.path), "--list-gpu-code"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return sorted(int(number) for number in re.findall(r"^sm_(\d+)$", listed, re.MULTILINE))


def _nvcc_places() -> Iterator[Path]:
    """Where nvcc may be: only in CUDA_HOME or CUDA_PATH if one is set, else in PATH, then in the pip packages."""
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        yield Path(home).resolve() / "bin" / "nvcc"
        return
    if found := shutil.which("nvcc"):
        yield Path(found)
    for place in dict.fromkeys(site_packages("nvidia")):
        yield from sorted(place.glob("nvidia/cu[0-9]*/bin/nvcc"), reverse=True)


def _try_nvcc(path: Path) -> Nvcc:
    if not os.access(path, os.X_OK):
        raise CannotBuild(f"{path} is not there or not executable")
    if path.parents[2].name == "nvidia":
        lacks = [package for package, file in PIP_TOOLKIT.items() if not (path.parents[1] / file).exists()]
        if lacks:
            raise CannotBuild(f"{path} lacks {', '.join(lacks)} (requirements-cuda.txt)")
    told = subprocess.run([str(path), "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+)\.(\d+).*", told.stdout)
    if told.returncode or release is None:
        raise CannotBuild(f"{path} --version fails: {(told.stderr or told.stdout).strip()}")
    version = int(release[1]), int(release[2])
    if version < OLDEST_NVCC:
        raise CannotBuild(f"{path} is of CUDA {release[1]}.{release[2]}, {'.'.join(map(str, OLDEST_NVCC))} is needed")
    return Nvcc(path, version, release[0])


def find_nvcc() -> Nvcc:
    reasons = []
    for path in _nvcc_places():
        try:
            return _try_nvcc(path)
        except CannotBuild as reason:
            reasons.append(str(reason))
    raise CannotBuild(
        f"no nvcc: {'; '.join(reasons) or 'neither on PATH nor among the pip packages'}. "
        "Set CUDA_HOME to a CUDA toolkit, or in a checkout: make setup-cuda"
    )


def _ninja() -> str | None:
    if spec := find_spec("ninja"):
        found = shutil.which("ninja", path=os.pathsep.join(str(p) for p in _scripts(spec.origin)))
        if found:
            return found
    return shutil.which("ninja")


def _scripts(origin: str | None):
    yield sysconfig.get_path("scripts")
    # pip's isolated environment: <overlay>/lib/pythonX.Y/site-packages/ninja and <overlay>/bin.
    if origin:
        yield Path(origin).parents[4] / "bin"


def _escape(value: object) -> str:
    return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _ninja_file(tools: Toolchain) -> str:
    shared = ["  command = $run", "  description = $name"]
    lines = ["rule run", *shared, "  depfile = $depfile", "  deps = gcc", "rule link", *shared]
    for step in (*tools.compiles, *tools.links):
        rule = "run" if step.depfile else "link"
        lines.append(f"build {_escape(step.output)}: {rule} {' '.join(map(_escape, step.inputs))}")
        lines.append("  run = " + shlex.join(step.command).replace("$", "$$"))
        lines.append(f"  name = {step.name}")
        if step.depfile:
            lines.append(f"  depfile = {step.depfile}")
    return "\n".join(lines) + "\n"


def build(tools: Toolchain) -> None:
    """Run the steps that are out of date, in parallel; a command that fails ends the build with its output."""
    for step in (*tools.compiles, *tools.links):
        step.output.parent.mkdir(parents=True, exist_ok=True)
    jobs = str(len(os.sched_getaffinity(0)))
    ninja = _ninja()
    if ninja:
        script = tools.folder / "build.ninja"
        write_if_changed(script, _ninja_file(tools))
        _require_success([subprocess.run([ninja, "-C", str(tools.folder), "-f", str(script), "-j", jobs]).returncode])
        return

    def run(step: Step) -> int:
        print(step.name, flush=True)
        code = subprocess.run(step.command).returncode
        if code:
            print(f"failed: {shlex.join(step.command)}", flush=True)
        return code

    with ThreadPoolExecutor(int(jobs)) as pool:
        for stage in (tools.compiles, tools.links):
            _require_success(list(pool.map(run, stage)))


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say what is built and, at the end, how long it took: in `pip -v` and `make`."""
    start = time.perf_counter()
    print(f"udml-kernels: building {what}", flush=True)
    yield
    print(f"udml-kernels: built {what} in {time.perf_counter() - start:.0f} s", flush=True)


def _require_success(codes: list[int]) -> None:
    # Ctrl-C ends ninja with 128 + SIGINT (2 before version 1.12), and a compiler by the signal itself.
    if {128 + signal.SIGINT, signal.SIGINT, -signal.SIGINT} & set(codes):
        raise SystemExit("udml-kernels: the build was interrupted; run it again to go on from there")
    if any(codes):
        raise SystemExit("udml-kernels: the kernels did not compile, see above")


if __name__ == "__main__":
    try:
        print(find_nvcc().path)
    except CannotBuild as reason:
        sys.exit(str(reason))
