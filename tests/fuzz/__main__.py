"""Run generated cases, and say which of them differ from the reference. Exit code 1 if one does."""

import argparse
import contextlib
import multiprocessing
import os
import sys
import time

BACKENDS = ("cpu", "cuda-host", "triton", "cuda")
CHUNK = 100


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="cases of each op (default 2000)")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="number of the first case (default 0)")
    parser.add_argument("--op", nargs="+", metavar="OP", help="default: all")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="default: cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="mismatches of an op to make small (default 3)")
    parser.add_argument("--case", nargs="+", default=[], metavar="OP:NUMBER", help="these cases alone, made small")
    return parser.parse_args()


def _start(backend: str) -> None:
    """In each process: what decides about backends is read when the suite is imported."""
    os.environ["UDML_TEST_BACKENDS"] = backend
    import torch

    import tests.backends  # noqa: F401

    torch.set_num_threads(1)


def _column(backend: str) -> str:
    return backend.removesuffix("-host")


@contextlib.contextmanager
def _threads(number: int):
    """Large cases are few, so that a few threads share some of them costs little."""
    import torch

    torch.set_num_threads(1 + number % 3)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def _faults(backend: str, op: str, number: int, tape=None):
    """(faults, case, tape)"""
    from .case import faults, generate

    case, tape = generate(op, number, tape)
    with _threads(number):
        return faults(case, _column(backend)), case, tape


def _run(task: tuple[str, str, int, int]) -> tuple[str, int, float, list[tuple[int, str]]]:
    """(op, cases, seconds, (number, first fault) of those that fail)."""
    backend, op, first, count = task
    started, failed = time.perf_counter(), []
    for number in range(first, first + count):
        if found := _faults(backend, op, number)[0]:
            failed.append((number, found[0]))
    return op, count, time.perf_counter() - started, failed


def _show(backend: str, op: str, number: int) -> bool:
    """Print a failing case and how small it gets; whether it fails."""
    from .choices import smallest
    from .report import described

    found, _, tape = _faults(backend, op, number)
    print(f"\n{op}:{number}  {'; '.join(found) or 'no mismatch'}")
    if not found:
        return False

    def fails(shorter: list[int]) -> bool:
        with contextlib.suppress(ValueError, TypeError, RuntimeError, IndexError):
            return bool(_faults(backend, op, number, shorter)[0])
        return False

    found, case, _ = _faults(backend, op, number, smallest(tape, fails))
    print(f"made small: {'; '.join(found)}\n{described(case)}")
    print(f"again: python -m tests.fuzz --backend {backend} --case {op}:{number}", flush=True)
    return True


def main() -> int:
    options = _arguments()
    _start(options.backend)
    from .ops import GENERATORS
    from .report import totals

    if options.case:
        pairs = [case.rsplit(":", 1) for case in options.case]
        return max(_show(options.backend, op, int(number)) for op, number in pairs)
    ops = options.op or list(GENERATORS)
    end = options.first + options.cases
    tasks = [(options.backend, op, at, min(CHUNK, end - at)) for op in ops for at in range(options.first, end, CHUNK)]
    rows = {op: [0, 0, 0.0] for op in ops}
    failed: dict[str, list[tuple[int, str]]] = {op: [] for op in ops}
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        results = map(_run, tasks)
        if options.jobs > 1:
            # Not forked: the threads of PyTorch do not survive that.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(context.Pool(options.jobs, _start, (options.backend,)))
            results = pool.imap(_run, tasks)
        for op, count, seconds, bad in results:
            rows[op][0] += count
            rows[op][1] += len(bad)
            rows[op][2] += seconds
            for number, fault in bad:
                print(f"{op}:{number}  {fault}", flush=True)
            failed[op] += bad
    print(totals([(op, *row) for op, row in rows.items()]))
    total = sum(map(len, failed.values()))
    wall = time.perf_counter() - started
    print(f"{options.backend}: {total} mismatches in {len(ops)} x {options.cases} cases, {wall:.0f} s, {options.jobs} processes")
    for op, bad in failed.items():
        for number, _ in bad[: options.show]:
            _show(options.backend, op, number)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
