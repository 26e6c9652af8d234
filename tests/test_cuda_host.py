"""The harness that runs the CUDA column on the CPU: correct kernels pass in it, and no planted fault does.

Faults that end the process (asan) and the samples under AddressSanitizer run in processes of their own.
"""

import math
import os
import random
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from .cuda_host.build import build, load, sanitizer_environment

ROOT = Path(__file__).resolve().parents[1]
IMPORT = """
import importlib.util
spec = importlib.util.spec_from_file_location({name!r}, {path!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.{call}
"""


@pytest.fixture(scope="module", params=["plain", "race"])
def host(request):
    return load(request.param, kernels=False)


@pytest.fixture
def racy():
    return load("race", kernels=False)


# ---- Correct kernels.


def sums(host, blocks, threads):
    values = [float(i % 7) for i in range(3000)]
    expected = [0.0] * blocks
    for i, value in enumerate(values):
        expected[i // threads % blocks] += value
    assert host.block_sums(values, blocks, threads) == expected


def shuffled(kind, argument, width, lane):
    begin = lane // width * width
    if kind == 0:
        return begin + argument % width
    if kind == 1:
        return lane - argument if lane - argument >= begin else lane
    if kind == 2:
        return lane + argument if lane + argument < begin + width else lane
    return lane ^ argument if lane ^ argument < begin + width else lane


def check_sums(host):
    for order in range(6):
        host.set_order(order)
        for blocks, threads in ((1, 32), (3, 64), (2, 256), (1, 1024)):
            sums(host, blocks, threads)
    host.set_order(0)


def check_indices(host):
    for grid, block in (
        ((1, 1, 1), (1, 1, 1)),
        ((2, 3, 4), (5, 3, 2)),
        ((7, 1, 2), (1, 33, 1)),
        ((1, 2, 1), (64, 1, 9)),
    ):
        assert set(host.indices(grid, block)) == {1}


def check_shuffles(host):
    for as_double in (False, True):
        for width in (1, 2, 8, 32):
            for kind in range(4):
                for argument in (0, 1, 3, 16, 31):
                    expected = [shuffled(kind, argument, width, lane) for lane in range(32)]
                    assert host.shuffles(kind, argument, width, as_double) == expected, (kind, argument, width)


def check_votes(host):
    for predicates in (0, 1, 0x80000000, 0x00FF00FF, 0xFFFFFFFF):
        for mask in (0xFFFFFFFF, 0x000000FF, 0x00000100, 0xF0F0F0F0):
            within = predicates & mask
            block = [predicates.bit_count(), predicates == 0xFFFFFFFF, predicates != 0]
            assert host.votes(predicates, mask) == [within != 0, within == mask, within, *block]


def check_atomics(host):
    for blocks, threads in ((1, 1), (3, 64), (2, 1024)):
        n = blocks * threads
        assert host.atomics(blocks, threads) == [-n, n - 1, n * 2.0**32, n / 2, n * 2, 7]


CHECKS = (check_sums, check_indices, check_shuffles, check_votes, check_atomics)


@pytest.mark.parametrize("check", CHECKS)
def test_correct_kernels(host, check):
    check(host)


def floats_to_narrow():
    """Every finite half and bfloat16, what lies halfway between neighbours and beside it, and words at random."""
    numbers = random.Random(0)
    words = [numbers.getrandbits(32) for _ in range(20000)]
    words += [bits << 16 | low for bits in range(0, 1 << 16, 5) for low in (0, 0x7FFF, 0x8000, 0x8001)]
    halves = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    between = ((halves[:-1].double() + halves[1:].double()) / 2).float()
    beside = [torch.nextafter(between, torch.full_like(between, limit)) for limit in (0.0, math.inf)]
    values = torch.cat([halves, between, *beside, torch.tensor([65519.0, 65520.0, 1e30, math.inf, 2.0**-25])])
    words = torch.tensor(words, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.cat([values, -values, words])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversions_are_torchs(dtype):
    host, half = load("plain", kernels=False), dtype == torch.float16
    values = floats_to_narrow()
    got = torch.tensor(host.narrowed(values.tolist(), half), dtype=torch.int32)
    expected = values.to(dtype).view(torch.int16).int() & 0xFFFF
    # Python's floats lose what a NaN holds, not that it is one.
    assert torch.equal(got, torch.where(values.isnan(), 0x7FFF, expected))
    every = torch.arange(1 << 16, dtype=torch.int32)
    back = torch.tensor(host.widened(every.tolist(), half))
    truth = every.to(torch.int16).view(dtype).float()
    assert torch.equal(back.isnan(), truth.isnan())
    assert torch.equal(back.nan_to_num().view(torch.int32), truth.nan_to_num().view(torch.int32))


def test_shared_memory_is_refilled_for_every_block():
    assert set(load("plain", kernels=False).found_in_shared(5)) == {0xFFFFFFFF}


def test_order_varies(host):
    seen = []
    for order in range(6):
        host.set_order(order)
        ran = host.seen_first(4, 64)
        assert sorted(ran) == list(range(256))
        blocks = [ran[i] // 64 for i in range(0, 256, 64)]
        assert blocks in ([0, 1, 2, 3], [3, 2, 1, 0])
        seen.append((tuple(i % 64 for i in ran[:64]), tuple(blocks)))
    host.set_order(0)
    assert {threads[:2] for threads, _ in seen} >= {(0, 1), (63, 62)}
    assert len({threads for threads, _ in seen}) == 3 and len({blocks for _, blocks in seen}) == 2
    # Within a launch as well.
    ran = host.seen_first(3, 64)
    assert len({tuple(i % 64 for i in ran[begin : begin + 64]) for begin in (0, 64, 128)}) == 3


def test_launches_are_counted(host):
    host.clear_launches()
    host.indices([1, 1, 1], [2, 1, 1])
    host.atomics(1, 1)
    host.atomics(1, 1)
    assert host.launches() == {"mark_indices": 1, "count": 2}


def test_from_many_threads(host):
    failures = []

    def work(order):
        try:
            for _ in range(20):
                sums(host, 2, 64 * order)
                with pytest.raises(RuntimeError, match="no thread can go on"):
                    host.half_barrier()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=[i]) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---- Faults, each with what its message has to say.

WAITING = {
    "half_barrier": "kernel 'half_barrier', block (0,0,0): no thread can go on: "
    "threads 0-15 at __syncthreads; threads 16-31 exited",
    "more_barriers": "threads 0-31 exited; threads 32-63 at __syncthreads",
    "barrier_and_vote": "threads 0-31 at __syncthreads; threads 32-62 exited; threads 63 at __any_sync",
    "different_barriers": "is at __syncthreads, while thread 32 is at __syncthreads_or",
    "lane_missing": "threads 0-6, 8-31 at __shfl_sync, mask 0xffffffff; threads 7 exited",
    "mask_without_caller": "with mask 0x0000ffff, which does not name its lane 16",
    "source_outside": "thread (16,0,0) calls __shfl_sync with mask 0xffff0000 and reads lane 3, which takes no part",
    "different_collectives": "__any_sync",
    "bad_width": "calls __shfl_sync with width 24",
    "throws": "thrown by a thread",
    "too_many_threads": "invalid configuration: more than 1024 threads a block",
    "too_many_rows": "invalid configuration: the grid exceeds",
    "empty_grid": "invalid configuration: an empty grid",
    "too_much_dynamic": "invalid configuration: more than 48 KiB of shared memory",
    "too_much_shared": "has 56000 bytes of shared memory, more than 48 KiB",
}
UNWRITTEN = "uninitialised shared memory: no thread of the block has written it yet"
RACES = {
    "race_without_barrier": "kernel 'exchange', block (0,0,0): thread ",
    "race_across_shuffle": "shared memory 'tile', byte 188, a race: written by thread (47,0,0) of block (0,0,0)",
    "race_across_half_syncwarp": "shared memory 'tile', byte 200, a race: written by thread (50,0,0)",
    "race_across_warps": "shared memory 'tile'",
    "race_of_late_write": "thread (5,0,0) writes 4 bytes of shared memory 'tile', byte 0, a race: read by thread ",
    "race_between_blocks": "writes 4 bytes of global memory at 0x",
    "race_between_threads": "writes 4 bytes of global memory at 0x",
    "race_of_reads_between_blocks": "a race: read by thread",
    "race_with_atomic": "updates 4 bytes of global memory",
    "race_of_bytes": "writes 1 bytes of global memory",
    "race_of_copies": "writes 64 bytes of global memory",
    "unwritten_shared": f"thread (0,0,0) reads 4 bytes of shared memory 'tile', byte 0, {UNWRITTEN}",
    "unwritten_by_second_block": f"block (1,0,0): thread (0,0,0) reads 4 bytes of shared memory 'tile', "
    f"byte 0, {UNWRITTEN}",
    "unwritten_dynamic": f"shared memory 'dynamic', byte 0, {UNWRITTEN}",
}
# Where two blocks must appear in the message.
BETWEEN_BLOCKS = ("race_between_blocks", "race_of_reads_between_blocks")
FATAL = {
    "write_past_end": ("heap-buffer-overflow", "WRITE of size 4"),
    "read_past_end": ("heap-buffer-overflow", "READ of size 4"),
    "dynamic_past_end": ("heap-buffer-overflow", "0 bytes to the right of 80-byte region"),
    "static_past_end": ("index 32 out of bounds", "float [32]"),
    "static_pointer_past_end": ("global-buffer-overflow", "tile_memory"),
    "misaligned": ("store to misaligned address", "requires 16 byte alignment"),
    "misaligned_shared": ("store to misaligned address", "requires 16 byte alignment"),
    "stack_overflow": ("stack-overflow", "in deeper"),
}
CORRECT = [
    "no_race_with_barrier",
    "no_race_with_syncwarp",
    "no_race_between_launches",
    "no_race_of_reads",
    "no_race_with_atomic",
    "no_race_of_bytes",
    "aligned",
    "dynamic_to_the_end",
    "nested_masks",
]


def test_no_case_is_left_out(racy):
    assert sorted([*WAITING, *RACES, *FATAL, *CORRECT]) == sorted(racy.cases)


@pytest.mark.parametrize("case", WAITING)
def test_fault_is_an_error(host, case):
    for _ in range(2):
        with pytest.raises(RuntimeError) as error:
            getattr(host, case)()
        assert WAITING[case] in str(error.value)
        # What an error left behind does no harm.
        sums(host, 2, 256)


@pytest.mark.parametrize("case", RACES)
def test_race_is_an_error(racy, case):
    with pytest.raises(RuntimeError) as error:
        getattr(racy, case)()
    message = str(error.value)
    assert RACES[case] in message
    places = {part.split(")")[0] for part in message.split("block (")[1:]}
    assert len(places) == (2 if case in BETWEEN_BLOCKS else 1), message
    sums(racy, 2, 256)


@pytest.mark.parametrize("case", RACES)
def test_a_race_is_for_the_race_variant(case):
    getattr(load("plain", kernels=False), case)()


@pytest.mark.parametrize("case", CORRECT)
def test_no_fault(host, case):
    for order in range(6):
        host.set_order(order)
        getattr(host, case)()
    host.set_order(0)


def run(variant, call):
    library = build(variant, kernels=False)
    script = IMPORT.format(name=library.name.split(".")[0], path=str(library), call=call)
    environment = os.environ | (sanitizer_environment() if variant == "asan" else {})
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("case", FATAL)
def test_fault_ends_a_sanitized_process(case):
    result = run("asan", f"{case}()")
    assert result.returncode != 0
    assert all(part in result.stderr for part in FATAL[case]), result.stderr


def test_fault_of_the_stack_ends_the_process():
    assert run("plain", "stack_overflow()").returncode == -11


def test_samples_pass_in_a_sanitized_process():
    script = f"""
from tests.cuda_host.build import load
from tests.test_cuda_host import CHECKS, CORRECT, WAITING
host = load("asan", kernels=False)
for name in CORRECT:
    getattr(host, name)()
for name in WAITING:
    try:
        getattr(host, name)()
    except RuntimeError as error:
        assert WAITING[name] in str(error), error
    else:
        raise AssertionError(name)
for check in CHECKS:
    check(host)
assert set(host.found_in_shared(5)) == {{0xFFFFFFFF}}
numbers = {struct.unpack("f", b"abcd")[0]!r}, 1.0, 6e-8, 1e9
for half in (False, True):
    host.widened(host.narrowed(numbers, half), half)
print("passed")
"""
    environment = os.environ | sanitizer_environment()
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0 and result.stdout.endswith("passed\n"), result.stdout[-2000:] + result.stderr[-4000:]
