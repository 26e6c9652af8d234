"""One revision's library in a process of its own, which times works on request.

    python -m benchmarks.worker FOLDER/udml_kernels THREADS

Two revisions register the same ops with torch, so they cannot share a process. Between two requests it sleeps.

The works are this checkout's for every revision: its `udml_kernels.testing` and `udml_kernels.tools` replace those of
the requested library.
"""

import gc
import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from .checkouts import ROOT
from .process import serve

_SEED = 20240521
# Warm-up calls before the clock starts, as a fraction of a sample's calls: other processes have used the caches.
_WARM = 0.25
# Of larger results, this many elements are compared, evenly spread.
_KEPT = 1 << 20


def load(library: Path) -> ModuleType:
    """The package in that folder as `udml_kernels`, with this checkout's works and tools."""
    package = _package("udml_kernels", library)
    for name in ("testing", "tools"):
        setattr(package, name, _package(f"udml_kernels.{name}", ROOT / "udml_kernels" / name))
    return package


def _package(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if name in sys.modules or spec is None or spec.loader is None:
        raise RuntimeError(f"{name}: expected a package in {folder} that was not imported before")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """The requests. Every method returns what becomes a line of JSON."""

    def __init__(self, threads: int):
        import torch

        import udml_kernels

        torch.set_num_threads(threads)
        self._torch, self._device, self._library = torch, torch.device("cpu"), udml_kernels
        self._work: Any = None
        self._call: Any = None

    def about(self) -> dict[str, Any]:
        backends = self._library.backends
        folder = str(Path(self._library.__file__).parent)
        return {"library": folder, "backend": backends.select(self._device), "isa": backends.isa_level}

    def open(self, work: str) -> dict[str, Any]:
        """Make a work's inputs and call it; return the seconds of a call, or why this library cannot run it."""
        from udml_kernels.tools.steps import fused_step

        from .catalogue import catalogue

        self._work = self._call = None
        self._work = catalogue()[work].work()
        self._call = fused_step(self._work, self._device)
        try:
            self._call()
        except (AttributeError, TypeError, ImportError) as error:
            return {"missing": f"{type(error).__name__}: {error}"}
        self._sample(1)
        return {"seconds": self._sample(1)}

    def results(self, file: str, truth: bool) -> dict[str, Any]:
        """Save the open work's results for one seed, with `truth` also in float64: at most `_KEPT` elements of each."""
        from udml_kernels.tools.steps import Step

        torch, work = self._torch, self._work
        seed = torch.tensor([_SEED])

        def kept(step: Any) -> list[Any]:
            return [v.detach().flatten()[:: max(1, v.numel() // _KEPT)].clone() for v in step(seed)]

        found = {"results": kept(Step(work, work.fused, self._device))}
        if truth:
            found["truth"] = kept(Step(work, work.float64_fused or work.fused, self._device, torch.float64))
        torch.save(found, file)
        return {}

    def time(self, calls: int) -> dict[str, Any]:
        """Seconds per call, the mean of `calls` calls."""
        self._sample(max(1, round(_WARM * calls)))
        return {"seconds": self._sample(calls)}

    def _sample(self, calls: int) -> float:
        repeat = range(calls)
        gc.disable()
        try:
            start = time.perf_counter()
            for _ in repeat:
                self._call()
            return (time.perf_counter() - start) / calls
        finally:
            gc.enable()


def main(arguments: list[str]) -> None:
    library, threads = arguments
    # The library's own output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load(Path(library).resolve())
    serve(Session(int(threads)), sys.stdin, answers)


if __name__ == "__main__":
    main(sys.argv[1:])
