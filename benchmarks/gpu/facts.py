"""The facts of a machine that its results depend on, as a line of JSON.

python -m benchmarks.gpu.facts [--dry]
"""

import importlib.metadata
import json
import sys

import torch

from benchmarks import machine
from udml_kernels import backends

PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-xdist", "pytest-timeout", "matplotlib")


def facts(device: torch.device) -> dict[str, object]:
    """What `benchmarks run` records, and what a GPU's kernels depend on."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed"
    found: dict[str, object] = {**machine.facts(device, torch.get_num_threads()), "packages": packages}
    names = ("cuda", "triton")
    found["backends"] = {name: backends.why_unavailable(name, device) or "available" for name in names}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "card": properties.name,
            "directory": machine.results_directory(device, 1).name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "l2_bytes": machine.cache_bytes(device),
            "driver_cuda": ".".join(map(str, backends._driver_version() or ("unknown",))),
        }
    return found


if __name__ == "__main__":
    print(json.dumps(facts(torch.device("cpu" if "--dry" in sys.argv else "cuda"))))
