"""Run generated cases and report those that differ from the reference. Exit code 1 if there are any."""

import argparse
import contextlib
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

BACKENDS = ("cpu", "cuda-ptx", "triton-ptx", "cuda", "triton")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="cases of each op (default 2000)")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="number of the first case (default 0)")
    parser.add_argument("--op", nargs="+", metavar="OP", help="default: all")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="default: cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="mismatches per op to make small (default 3)")
    parser.add_argument("--case", nargs="+", default=[], metavar="OP:NUMBER", help="only these cases, made small")
    return parser.parse_args()


def main() -> int:
    options = _options()
    # The suite reads it when it is imported, here and in the worker processes.
    os.environ["UDML_TEST_BACKENDS"] = options.backend
    from udml_kernels.testing.ops import OPS

    from .report import totals
    from .run import CHUNK, run, show, start

    start()
    if options.case:
        pairs = [case.rsplit(":", 1) for case in options.case]
        return max(show(op, int(number)) for op, number in pairs)
    ops, end = options.op or list(OPS), options.first + options.cases
    tasks = [(op, at, min(CHUNK, end - at)) for op in ops for at in range(options.first, end, CHUNK)]
    rows, failed, started = {op: [0, 0, 0.0] for op in ops}, {op: [] for op in ops}, time.perf_counter()
    with contextlib.ExitStack() as stack:
        results = map(run, tasks)
        if options.jobs > 1:
            # Not forked: PyTorch's threads do not survive a fork.
            context = multiprocessing.get_context("spawn")
            results = stack.enter_context(ProcessPoolExecutor(options.jobs, context, start)).map(run, tasks)
        for op, count, seconds, bad in results:
            rows[op] = [rows[op][0] + count, rows[op][1] + len(bad), rows[op][2] + seconds]
            failed[op] += bad
            for number, fault in bad:
                print(f"{op}:{number}  {fault}", flush=True)
    print(totals([(op, *row) for op, row in rows.items()]))
    total, wall = sum(map(len, failed.values())), time.perf_counter() - started
    print(f"{options.backend}: {total} mismatches in {len(ops)} x {options.cases} cases, {wall:.0f} s")
    for op, bad in failed.items():
        for number, _ in bad[: options.show]:
            show(op, number)
    if total:
        print(f"\nAgain: python -m tests.fuzz --backend {options.backend} --case OP:NUMBER")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
