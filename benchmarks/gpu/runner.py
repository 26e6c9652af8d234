"""Run the steps one after another: each in processes of its own, within its time, its output copied as it comes."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from . import read
from .plan import LIMIT, ROOT, Part, Step

# Before its limit a step is interrupted, so that pytest and the profilers write what they have; then it is killed.
_GRACE = 8.0
# A step is not started with less than this left of its part's time.
_LEAST = 5.0


@dataclass
class Done:
    """How a step ended: `rc` is None where it was not started or had to be ended; `why` says what is wrong."""

    part: int
    name: str
    rc: int | None
    seconds: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return self.rc == 0 and not self.why


def environment() -> dict[str, str]:
    """Of every step: this checkout, compiled Triton, CUDA's tools, and nothing held back in buffers."""
    removed = ("TRITON_INTERPRET", "UDML_KERNELS_BACKEND")
    found = {
        name: value for name, value in os.environ.items() if name not in removed and not name.startswith("UDML_TEST_")
    }
    toolkit = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    lists = {"PYTHONPATH": (ROOT, ROOT / "python"), "PATH": ()}
    for name, first in lists.items():
        given = [os.environ[name]] if os.environ.get(name) else []
        found[name] = os.pathsep.join(map(str, (*first, *given)))
    found["PATH"] += os.pathsep + str(Path(toolkit) / "bin")
    return found | {"PYTHONUNBUFFERED": "1"}


def missing(step: Step, path: str) -> str:
    """What the step needs and this machine lacks, or nothing."""
    lacks = [f"the program {tool}" for tool in step.tools if not shutil.which(tool, path=path)]
    lacks += [f"the Python package {name}" for name in step.packages if importlib.util.find_spec(name) is None]
    lacks += [f"the file {file}" for file in step.files if not (ROOT / file).exists()]
    return ", ".join(lacks)


def run_part(number: int, part: Part, out: Path, limit: float = LIMIT) -> list[Done]:
    """Run a part's steps and append how each ended to steps.jsonl; none of them stops the others."""
    end, found = time.monotonic() + limit, []
    for step in part.steps:
        print(f"\n== part {number}, {part.title}: {step.name}", flush=True)
        done = _run(number, step, out, end - time.monotonic())
        if step.tests and done.passed and " passed" not in read.tests(read.text(out, f"{number}_{step.name}.txt")):
            done.why = "no test passed"
        found.append(done)
        print(f"== {step.name}: {done.why or f'exit code {done.rc}'}, {done.seconds:.1f} s", flush=True)
        with (out / "steps.jsonl").open("a") as file:
            file.write(json.dumps(asdict(done)) + "\n")
    return found


def _run(number: int, step: Step, out: Path, left: float) -> Done:
    variables = environment() | step.environment
    lacks = missing(step, variables["PATH"])
    why = f"missing: {lacks}" if lacks else "the part's time was over" if left < _LEAST else ""
    with (out / f"{number}_{step.name}.txt").open("w") as file:
        if why:
            file.write(why + "\n")
            return Done(number, step.name, None, 0.0, why)
        return execute(number, step, variables, file, min(step.seconds, left))


def execute(number: int, step: Step, variables: dict[str, str], file: TextIO, seconds: float) -> Done:
    """Start the command, copy its lines, and end it with its children when its time is over."""
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=variables, text=True, errors="replace", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=_interruptible,
        )  # fmt: skip
    except OSError as error:
        file.write(f"{error}\n")
        return Done(number, step.name, None, 0.0, f"did not start: {error}")
    copier = threading.Thread(target=_copy, args=(process, file), daemon=True)
    copier.start()
    grace, why, rc = min(_GRACE, seconds / 4), "", None
    try:
        rc = process.wait(seconds - grace)
    except subprocess.TimeoutExpired:
        why = f"timed out after {seconds:.0f} s"
        _signal(process, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    finally:
        # The process group holds what the command started, too.
        _signal(process, signal.SIGKILL)
        process.wait()
    # A child in a session of its own could keep the pipe open.
    copier.join(5)
    return Done(number, step.name, None if why else rc, round(time.monotonic() - start, 1), why)


def _interruptible() -> None:
    # A shell starts what it runs in the background with interrupts ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _signal(process: subprocess.Popen, which: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, which)


def _copy(process: subprocess.Popen, file: TextIO) -> None:
    assert process.stdout is not None
    # The file is closed while a child that left the process group still writes.
    with suppress(ValueError):
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
            file.flush()
