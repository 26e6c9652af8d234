"""What the times of a run depend on, and where its results go."""

import datetime
import re
import subprocess
from pathlib import Path

import torch

from udml_kernels import backends
from udml_kernels.tools.info import environment, version
from udml_kernels.tools.timing import copy_bandwidth, interleaved

RESULTS = Path(__file__).parent / "results"
# Generations that AMD's model name does not state: (family, lowest model, highest model).
_ZEN = {
    "zen2": ((23, 0x30, 0xFF),),
    "zen3": ((25, 0x00, 0x0F), (25, 0x20, 0x5F)),
    "zen4": ((25, 0x10, 0x1F), (25, 0x60, 0xAF)),
    "zen5": ((26, 0x00, 0xFF),),
}


def facts(device: torch.device, threads: int) -> dict[str, str]:
    """The environment as text."""
    build = backends.cpu_facts | backends.cuda_facts
    found = environment() | {
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "isa": backends.isa_level or "none",
        "threads": str(threads),
        "compiler": next((value for key, value in build.items() if "compiler" in key), "unknown"),
        "backend": backends.select(device),
        "numpy": version("numpy"),
        "oneMKL": version("mkl"),
    }
    del found["level in use"]
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def _commit() -> str:
    """The revision, with +dirty if tracked files differ from it."""
    try:
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, check=True
        ).stdout.strip()
        return run("rev-parse", "--short=12", "HEAD") + ("+dirty" if run("status", "-s", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def results_directory(device: torch.device, threads: int) -> Path:
    """benchmarks/results/<card> or <processor>-<threads>cpu, with the ISA level in between unless it is the best."""
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return RESULTS / _slug(name)
    level = backends.isa_level
    forced = [] if level in (None, *backends.supported_isa_levels()[:1]) else [str(level)]
    return RESULTS / "-".join([_processor(), *forced, f"{threads}cpu"])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = dict(re.findall(r"^(\w[\w ]*\w)\s*: (.*)$", text.partition("\n\n")[0], re.M))
    family, model = (int(found.get(key, 0)) for key in ("cpu family", "model"))
    generation = ""
    if "AMD" in found.get("vendor_id", ""):
        ranges = ((name, r) for name, rs in _ZEN.items() for r in rs)
        generation = next((name for name, (f, low, high) in ranges if family == f and low <= model <= high), "")
    return _slug(f"{environment()['processor']} {generation}")


def _slug(name: str) -> str:
    """Lower case, without common words: "AMD EPYC" becomes epyc, "NVIDIA H100 PCIe" becomes nvidia-h100-pcie."""
    name = re.sub(r"\((r|tm)\)|\bamd\b|\bcpu\b|processor|@.*?ghz|\d+-core", " ", name.lower())
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


def copy_gb_s(device: torch.device, threads: int) -> dict[str, float]:
    """Bandwidth of a copy by number of threads, reads and writes both counted; empty where it cannot be measured."""
    counts = sorted({1, threads}) if device.type == "cpu" else [threads]
    rates = {str(n): copy_bandwidth(device, n, 1 << 28) for n in counts}
    return {n: rate for n, rate in rates.items() if rate is not None}


def cache_bytes(device: torch.device) -> int | None:
    """Size of a GPU's last-level cache; None where torch does not report it."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return getattr(properties, "L2_cache_size", None)


def flops_g(device: torch.device, threads: int) -> dict[str, float]:
    """1e9 operations per second of a float32 matrix product, the best of a few, by number of threads."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    wait = None if device.type == "cpu" else torch.accelerator.synchronize
    found = {}
    for n in sorted({1, threads}) if device.type == "cpu" else [threads]:
        torch.set_num_threads(n)
        times = interleaved({"product": lambda: a @ b}, budget=0.3, wait=wait)
        found[str(n)] = 2e-9 * size**3 / times["product"].p20
    torch.set_num_threads(threads)
    return found
