"""Jobs in a process pool; each result is kept in a file, so that an interrupted reproduction can continue."""

import json
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..training.folder import write_text
from .plan import Job
from .runs import execute


class Failure(NamedTuple):
    """A job that failed, and the error's traceback."""

    job: Job
    error: str

    @property
    def reason(self) -> str:
        """The error's last line."""
        return self.error.strip().splitlines()[-1]


class Outcome(NamedTuple):
    """Results by job name, and the failures."""

    results: dict[str, dict[str, Any]]
    failures: list[Failure]


def read_result(folder: Path, job: Job) -> dict[str, Any] | None:
    """The job's result from an earlier call; None if there is none, or one for another configuration."""
    try:
        kept = json.loads((folder / f"{job.name}.json").read_text())
    except (OSError, ValueError):
        return None
    plain = json.loads(json.dumps(job.plain()))
    return kept["result"] if isinstance(kept, dict) and kept.get("job") == plain and "result" in kept else None


def run_jobs(
    jobs: Sequence[Job],
    folder: Path,
    workers: int,
    finished: Callable[[Job, Failure | None], None] = lambda job, failure: None,
) -> Outcome:
    """Run jobs and return their results; those that the folder already has are not run again.

    A job that fails is part of the outcome, and the others still run.

    Args:
        folder: holds <job name>.json.
        workers: processes, with one thread each; 1 runs the jobs in this process.
        finished: called after every job, also for results that existed, with its failure if it failed.
    """
    results, failures, missing = {}, [], []
    for job in jobs:
        kept = read_result(folder, job)
        if kept is None:
            missing.append(job)
        else:
            results[job.name] = kept
            finished(job, None)
    for job, result, failure in _in_this_process(missing) if workers == 1 else _in_a_pool(missing, workers):
        if failure is None:
            text = json.dumps({"job": job.plain(), "result": result})
            write_text(folder / f"{job.name}.json", text + "\n")
            results[job.name] = result
        else:
            failures.append(failure)
        finished(job, failure)
    return Outcome(results, failures)


def _in_this_process(jobs: Sequence[Job]) -> Iterator[tuple[Job, Any, Failure | None]]:
    for job in jobs:
        try:
            yield job, execute(job), None
        except Exception:
            yield job, None, Failure(job, traceback.format_exc())


def _in_a_pool(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any, Failure | None]]:
    """Run the jobs in a pool. A killed process breaks its pool: the remaining jobs go to a new one.

    If that makes no progress, a pool of one process shows which job is at fault: the first one.
    """
    left, count = list(jobs), workers
    while left:
        broken: dict[str, str] = {}
        for job, result, error in _pooled(left, count):
            if isinstance(error, BrokenExecutor):
                broken[job.name] = _text(error)
            else:
                yield job, result, None if error is None else Failure(job, _text(error))
        stuck, left = len(broken) == len(left), [job for job in left if job.name in broken]
        if stuck and count == 1:
            first = left.pop(0)
            yield first, None, Failure(first, broken[first.name])
        count = 1 if stuck and count > 1 else workers


def _pooled(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Any, BaseException | None]]:
    context, count = multiprocessing.get_context("spawn"), min(workers, len(jobs))
    pool = ProcessPoolExecutor(count, context)
    try:
        with _children_ignore_interrupts():
            futures: dict[Future, Job] = {pool.submit(execute, job): job for job in jobs}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], None if error else future.result(), error
    except BaseException:
        # Ctrl-C, here or where the results go. Jobs write no files, so nothing is left half-written.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """A terminal sends Ctrl-C to all processes; only this one answers it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
