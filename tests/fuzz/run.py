"""The work of a run's processes: run cases by their numbers, and minimise a failing case."""

import contextlib
import gc
import time

import torch

from udml_kernels.testing.choices import smallest

from ..backends import BACKENDS
from .case import Generated, faults, generate
from .report import described
from .words import known_words

CHUNK = 100
Failed = list[tuple[int, str]]


def start() -> None:
    """Initialise a process."""
    torch.set_num_threads(1)
    # The objects that the imports made stay; collecting them again and again takes as long as the cases.
    gc.freeze()


def _tried(op: str, number: int, tape: list[int] | None = None) -> tuple[list[str], Generated, list[int]]:
    with known_words():
        case, tape = generate(op, number, tape)
        return faults(case, BACKENDS[0]), case, tape


def _names(found: list[str]) -> set[str]:
    return {fault.partition(":")[0] for fault in found}


def run(task: tuple[str, int, int]) -> tuple[str, int, float, Failed]:
    """(op, first case's number, cases) -> (op, cases, processor seconds, (number, first fault) of each failure)."""
    op, first, count = task
    started, failed = time.process_time(), []
    for number in range(first, first + count):
        if found := _tried(op, number)[0]:
            failed.append((number, found[0]))
    return op, count, time.process_time() - started, failed


def show(op: str, number: int) -> bool:
    """Print a failing case and its minimised form; return whether it fails."""
    found, _, tape = _tried(op, number)
    print(f"\n{op}:{number}  {'; '.join(found) or 'no mismatch'}")
    if not found:
        return False

    # Minimise for the same result: another fault may be found first.
    names = _names(found)

    def fails(simpler: list[int]) -> bool:
        # Choices that do not fit together give no case.
        with contextlib.suppress(ValueError, TypeError, RuntimeError, IndexError):
            return bool(names & _names(_tried(op, number, simpler)[0]))
        return False

    found, case, _ = _tried(op, number, smallest(tape, fails))
    print(f"made small: {'; '.join(found)}\n{described(case)}", flush=True)
    return True
