"""The parts and steps of `python -m benchmarks gpu`. Only the standard library is imported here and in `runner`."""

import os
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Seconds of a part, whatever its steps' own limits are.
LIMIT = 540
ACCESS = Path("build/gpu/access")
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sectors_op_write.sum",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
COMPILED = "fusion/large/float32|reparameterize/(nyud|cremad)/float32/forward.backward"


@dataclass(frozen=True)
class Step:
    """A command in a process of its own.

    Attributes:
        name: its output goes to <part>_<name>.txt.
        seconds: its time limit.
        tools: programs that it needs; `packages`: Python packages; `files`: files in the checkout.
        tests: it runs pytest, and has passed only if some test has: they skip where there is no GPU.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    environment: dict[str, str] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    packages: tuple[str, ...] = ("torch", "numpy")
    files: tuple[Path, ...] = ()
    tests: bool = False


@dataclass(frozen=True)
class Part:
    title: str
    steps: tuple[Step, ...]


def parts(out: Path, dry: bool = False) -> dict[int, Part]:
    """The parts by number; with `dry`, for a machine without a GPU, on the CPU, of each as little as possible."""
    made = {
        1: Part("does it run", _runs(dry)),
        2: Part("how fast", _speed(out, dry)),
        3: Part("Triton and memory", _memory(dry)),
        4: Part("compile and a step", _compile(out, dry)),
    }
    if dry:
        # The machine may be a small or a busy one.
        made = {n: Part(p.title, tuple(replace(s, seconds=5 * s.seconds) for s in p.steps)) for n, p in made.items()}
    return made


def _python(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, *map(str, arguments))


def _tests(
    name: str,
    file: str,
    seconds: int,
    dry: bool,
    *,
    backends: str = "",
    part: str = "0/1",
    jobs: int = 0,
    flags: str = "",
) -> Step:
    """A test file on the device, in up to `jobs` processes where pytest-xdist is installed."""
    if dry:
        backends, part, jobs = "cpu", "0/400", 0
    jobs = min(jobs, os.cpu_count() or 1)
    several = ["-n", jobs] if jobs > 1 and find_spec("xdist") else []
    command = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", *several, *flags.split(), f"tests/{file}")
    environment = {"UDML_TEST_DEVICE": "cpu" if dry else "cuda", "UDML_TEST_PART": part}
    if backends:
        environment["UDML_TEST_BACKENDS"] = backends
    return Step(name, command, seconds, environment, packages=("torch", "numpy", "pytest"), tests=not dry)


def _runs(dry: bool) -> tuple[Step, ...]:
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current"
    build = ("nvcc", "-O3", "-std=c++17", "-arch=native", "benchmarks/gpu/access.cu", "-o", str(ACCESS))
    return (
        Step("card", ("nvidia-smi", f"--query-gpu={query}", "--format=csv"), 10, tools=("nvidia-smi",), packages=()),
        Step("facts", _python("-m", "benchmarks.gpu.facts", *(["--dry"] if dry else [])), 40),
        Step("info", _python("-m", "udml_kernels", "info"), 25),
        Step("access_build", build, 40, tools=("nvcc",), packages=(), files=(Path("benchmarks/gpu/access.cu"),)),
        # A rehearsal ends before the first launch.
        Step("access", (str(ACCESS),), 15, tools=("nvidia-smi",) if dry else (), packages=(), files=(ACCESS,)),
        _tests("gpu_tests", "test_gpu.py", 90, dry, flags="--tb=short"),
        _tests("conformance_cuda", "test_conformance.py", 220, dry, backends="cuda", jobs=12, flags="--tb=line"),
    )


def _speed(out: Path, dry: bool) -> tuple[Step, ...]:
    return (
        _times("times", out, 330, dry),
        _profiled("ncu_cuda", "cuda", dry),
        _profiled("ncu_triton", "triton", dry),
    )


def _times(name: str, out: Path, seconds: int, dry: bool, *flags: str) -> Step:
    """Stops by itself 20 seconds before its limit."""
    command = _python("-m", "benchmarks.gpu.times", out / f"{name}.jsonl", "--seconds", seconds - 20)
    return Step(name, (*command, *(("--dry", "--only", "/tiny/") if dry else flags)), seconds)


def _profiled(name: str, backend: str, dry: bool) -> Step:
    case = _python("-m", "benchmarks.gpu.ncu_case", "cpu" if dry else backend)
    if dry:
        return Step(name, case, 75)
    ncu = ("ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--metrics", ",".join(METRICS))
    return Step(name, (*ncu, *case), 75, tools=("ncu",))


def _memory(dry: bool) -> tuple[Step, ...]:
    """Allocations that are not pooled, so that an access past one is seen."""
    steps = [
        _tests(
            "conformance_triton",
            "test_conformance.py",
            230,
            dry,
            backends="triton",
            part="0/3",
            jobs=15,
            flags="--tb=line",
        )
    ]
    every, backend = (400, "cpu") if dry else (12, "cuda")
    cases = _python("-m", "benchmarks.gpu.sanitize", every, backend)
    for tool in ("memcheck", "racecheck"):
        sanitizer = ("compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=udml", "--print-limit", "50")
        wrapped, tools = ((), ()) if dry else ((*sanitizer, "--error-exitcode", "9"), ("compute-sanitizer",))
        steps.append(Step(tool, (*wrapped, *cases), 90, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, tools=tools))
    return tuple(steps)


def _compile(out: Path, dry: bool) -> tuple[Step, ...]:
    head = ("-m", "benchmarks", "run", "head_step", "--device", "cpu" if dry else "cuda", "--out", out / "head_step")
    chosen = ("--quick", "-k", "features") if dry else ("-k", "features or cremad")
    return (
        _tests(
            "compile_tests", "test_compile.py", 150, dry, jobs=8, flags="--collect-only -qq" if dry else "--tb=short"
        ),
        _times("compile", out, 115, dry, "--compile", "--only", COMPILED),
        Step("head_step", _python(*head, *chosen), 95, packages=("torch", "numpy", "pytest")),
    )
