"""Each check of the PTX interpreter finds a fault planted in what nvcc compiles, ptx/faults.cu, and lets the kernel
without the fault pass."""

import threading

import pytest
import torch

from .ptx import build, machine
from .ptx.snippets import launch


@pytest.fixture(scope="module", autouse=True)
def kernels():
    machine.library()
    machine.load(build.faults_ptx().read_text(), "faults.ptx")


@pytest.fixture(autouse=True)
def strict():
    with machine.options(races=True, lenient=False, replicated=False, approximate="exact"):
        yield


def floats(count: int = 256) -> torch.Tensor:
    return torch.zeros(count)


def ints(count: int = 256) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


def same(count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    buffer = floats(count)
    return buffer, buffer


UNWRITTEN = "reads shared memory that nobody has written"
# Name: the launch with the fault, what the message says of it, the launch without it.
FAULTS = {
    # Races.
    "race without barrier": (
        lambda: launch("exchange", 1, 64, floats(), 0), "race in shared memory: reads what",
        lambda: launch("exchange", 1, 64, floats(), 1)),
    "race across shuffle": (
        lambda: launch("exchange", 1, 64, floats(), 2), "race in shared memory",
        lambda: launch("exchange", 1, 64, floats(), 3)),
    "race across half a syncwarp": (
        lambda: launch("exchange", 1, 64, floats(), 4), "race in shared memory",
        lambda: launch("exchange", 1, 64, floats(), 3)),
    "race across warps": (
        lambda: launch("exchange", 1, 64, floats(), 5), UNWRITTEN, lambda: launch("exchange", 1, 64, floats(), 1)),
    "race of late write": (
        lambda: launch("rewrite", 1, 64, floats(), 0), "thread (5,0,0), at ",
        lambda: launch("rewrite", 1, 64, floats(), 1)),
    "race between blocks": (
        lambda: launch("all_write", 3, 4, floats(), 0, 0),
        "race in global memory: writes what block (0,0,0) thread (0,0,0) wrote",
        lambda: launch("all_write", 3, 4, floats(), 2, 0)),
    "race between threads": (
        lambda: launch("all_write", 3, 4, floats(), 1, 0),
        "race in global memory: writes what block (0,0,0) thread (0,0,0) wrote",
        lambda: launch("all_write", 3, 4, floats(), 2, 0)),
    "race between threads in shared memory": (
        lambda: launch("all_write_shared", 1, 64, floats(), 0),
        "race in shared memory: writes what block (0,0,0) thread (0,0,0) wrote",
        lambda: launch("all_write_shared", 1, 64, floats(), 1)),
    "race of reads between blocks": (
        lambda: launch("write_then_read", 3, 32, *same()), "race in global memory",
        lambda: launch("write_then_read", 3, 32, floats(), floats())),
    "race with atomic": (
        lambda: launch("add_and_read", 1, 64, ints(1), ints(64), 0), "updated at",
        lambda: launch("add_and_read", 1, 64, ints(1), ints(64), 1)),
    "race of a write with another block's atomic": (
        lambda: launch("add_and_write", 3, 64, ints(2), 1), "race in global memory: writes what several blocks updated",
        lambda: launch("add_and_write", 3, 64, ints(2), 0)),
    "race of atomic with earlier write": (
        lambda: launch("add_shared", 1, 64, ints(), 0), "race in shared memory: updates what",
        lambda: launch("add_shared", 1, 64, ints(), 2)),
    "race of read with atomic in shared memory": (
        lambda: launch("add_shared", 1, 64, ints(), 1), "race in shared memory",
        lambda: launch("add_shared", 1, 64, ints(), 2)),
    "race of bytes": (
        lambda: launch("write_bytes", 1, 64, torch.zeros(64, dtype=torch.uint8), 2), "race in global memory: writes",
        lambda: launch("write_bytes", 1, 64, torch.zeros(64, dtype=torch.uint8), 1)),
    "race of copies": (
        lambda: launch("copy_block", 1, 4, floats(), floats(), 1), "race in global memory: writes",
        lambda: launch("copy_block", 1, 4, floats(), floats(), 16)),
    # Memory.
    "write past the end": (
        lambda: launch("write_at", 1, 1, floats(), 256),
        "writes 4 bytes out of bounds at 0x", lambda: launch("write_at", 1, 1, floats(), 255)),
    "write before the beginning": (
        lambda: launch("write_at", 1, 1, floats(), -1), "writes 4 bytes out of bounds at 0x",
        lambda: launch("write_at", 1, 1, floats(), 0)),
    "read past the end": (
        lambda: launch("read_at", 1, 1, floats(), floats(), 256), "reads 4 bytes out of bounds at 0x",
        lambda: launch("read_at", 1, 1, floats(), floats(), 255)),
    "update past the end": (
        lambda: launch("add_at", 1, 1, ints(3), 3), "0 bytes behind the end of one of 12",
        lambda: launch("add_at", 1, 1, ints(3), 2)),
    "dynamic past the end": (
        lambda: launch("write_dynamic", 1, 1, 20, shared=80), "writes 4 bytes of shared memory out of bounds",
        lambda: launch("write_dynamic", 2, 1, 19, shared=80)),
    "static past the end": (
        lambda: launch("write_static", 1, 1, 33), "writes 4 bytes of shared memory out of bounds",
        lambda: launch("write_static", 1, 1, 32)),
    "static into its neighbour": (
        lambda: launch("write_neighbour", 1, 32, floats(), 1), "writes 4 bytes of shared memory out of bounds",
        lambda: launch("write_neighbour", 1, 32, floats(), 0)),
    "static past the end by a generic address": (
        lambda: launch("write_through", 1, 1, floats(), 33), "writes 4 bytes of shared memory out of bounds",
        lambda: launch("write_through", 1, 1, floats(), 32)),
    "misaligned": (
        lambda: launch("write_vector", 1, 1, floats()[1:]), "misaligned access of 16 bytes",
        lambda: launch("write_vector", 1, 1, floats()[4:])),
    "misaligned in shared memory": (
        lambda: launch("vector_of_floats", 1, 1, floats(), 1), "misaligned access of 16 bytes",
        lambda: launch("vector_of_floats", 1, 1, floats(), 4)),
    "unwritten": (
        lambda: launch("unwritten", 1, 32, floats(), 0), UNWRITTEN, lambda: launch("unwritten", 1, 32, floats(), 1)),
    "unwritten by the second block": (
        lambda: launch("unwritten", 2, 32, floats(), 1), f"{UNWRITTEN}; in unwritten, block (1,0,0) thread (0,0,0)",
        lambda: launch("unwritten", 2, 32, floats(), 2)),
    "unwritten dynamic": (
        lambda: launch("unwritten_dynamic", 1, 32, floats(), 0, shared=128), UNWRITTEN,
        lambda: launch("unwritten_dynamic", 1, 32, floats(), 1, shared=128)),
    "local array": (
        lambda: launch("index_local", 1, 1, ints(), 8), "local memory out of bounds",
        lambda: launch("index_local", 1, 1, ints(), 7)),
    "stack overflow": (
        lambda: launch("recurse", 1, 1, ints(), 100000), "the calls overflow the stack",
        lambda: launch("recurse", 1, 1, ints(), 10)),
    "freed memory": (
        lambda: launch("write_at", 1, 1, floats().data_ptr(), 0), "writes 4 bytes out of bounds",
        lambda: launch("write_at", 1, 1, floats(), 0)),
    "division by zero": (
        lambda: launch("divide", 1, 32, ints(), 0), "integer division by zero",
        lambda: launch("divide", 1, 32, ints(), 3)),
    # Waiting.
    "barrier of half a warp": (
        lambda: launch("some_at_barrier", 2, 32, 16), "waits at a barrier, while thread (16,0,0) has exited",
        lambda: launch("some_at_barrier", 2, 32, 32)),
    "barrier of one of two warps": (
        lambda: launch("some_at_barrier", 1, 64, 32), "waits at a barrier, while thread (32,0,0) has exited",
        lambda: launch("some_at_barrier", 1, 64, 64)),
    "barrier and vote": (
        lambda: launch("barrier_and_vote", 1, 64, ints(), 1), "0xffffffff",
        lambda: launch("barrier_and_vote", 1, 64, ints(), 0)),
    "more barriers": (
        lambda: launch("more_barriers", 1, 64, 1), "waits at a barrier, while thread (0,0,0) has exited",
        lambda: launch("more_barriers", 1, 64, 0)),
    "different barriers": (
        lambda: launch("different_barriers", 1, 64, ints(), 1), "waits at a barrier of another kind",
        lambda: launch("different_barriers", 1, 64, ints(), 0)),
    "different barriers of a warp": (
        lambda: launch("barriers_of_lanes", 1, 64, floats(), 1), "lanes of a warp wait at different barriers",
        lambda: launch("barriers_of_lanes", 1, 64, floats(), 0)),
    "lane missing": (
        lambda: launch("lane_missing", 1, 32, floats(), 7), "0xffffffff",
        lambda: launch("lane_missing", 1, 32, floats(), 32)),
    "mask without caller": (
        lambda: launch("shuffle_masks", 1, 32, floats(), 0xFFFF, 0xFFFF, 3, 16),
        "lane 16 is not in its membermask 0xffff",
        lambda: launch("shuffle_masks", 1, 32, floats(), 0xFFFF, 0xFFFF0000, 3, 16)),
    "source outside the mask": (
        lambda: launch("shuffle_masks", 1, 32, floats(), 0xFFFF, 0xFFFF0000, 3, 32),
        "reads lane 3, which is not active",
        lambda: launch("shuffle_masks", 1, 32, floats(), 0xFFFFFFFF, 0xFFFFFFFF, 3, 32)),
    "mask of a lane that has another": (
        lambda: launch("shuffle_masks", 1, 32, floats(), 0xFFFFFFFF, 0xFFFF0000, 3, 16), "which never come",
        lambda: launch("shuffle_masks", 1, 32, floats(), 0xFFFFFFFF, 0xFFFFFFFF, 3, 16)),
    "different collectives": (
        lambda: launch("different_collectives", 1, 32, ints(), 1), "which never come",
        lambda: launch("different_collectives", 1, 32, ints(), 0)),
    "bad width": (
        lambda: launch("shuffle_width", 1, 32, ints(), 24), "segment mask 8",
        lambda: launch("shuffle_width", 1, 32, ints(), 16)),
    "trap": (
        lambda: launch("traps", 1, 32, ints(), 3), "trap; in traps, block (0,0,0) thread (3,0,0)",
        lambda: launch("traps", 1, 32, ints(), -1)),
    "assertion": (
        lambda: launch("asserts", 1, 32, ints(), 31), "calls __assertfail",
        lambda: launch("asserts", 1, 32, ints(), 32)),
    # Launches.
    "too many threads": (
        lambda: launch("nothing", 1, 1025), "invalid configuration of nothing: more than 1024 threads",
        lambda: launch("nothing", 1, 1024)),
    "more threads than the bounds": (
        lambda: launch("bounded", 1, 65), "more threads in a block than the 64", lambda: launch("bounded", 1, 64)),
    "too many rows": (
        lambda: launch("nothing", (1, 65536, 1), 1), "the grid exceeds", lambda: launch("nothing", (1, 65535, 1), 1)),
    "empty grid": (
        lambda: launch("nothing", 0, 1), "an empty grid", lambda: launch("nothing", 1, 1)),
    "too much dynamic": (
        lambda: launch("nothing", 1, 1, shared=(227 << 10) + 1), "more than 227 KiB of shared memory",
        lambda: launch("nothing", 1, 1, shared=227 << 10)),
    "too much static": (
        lambda: launch("too_much_shared", 1, 1), "more than 48 KiB of static shared memory",
        lambda: launch("write_static", 1, 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reverse"])
def test_fault_is_found(fault, reverse):
    faulty, message, healthy = FAULTS[fault]
    with machine.options(reverse_warps=reverse, reverse_blocks=reverse):
        healthy()
        for _ in range(2):
            with pytest.raises(RuntimeError) as error:
                faulty()
            if not reverse:
                assert message in str(error.value)
            # What an error left behind does no harm.
            healthy()


@pytest.mark.parametrize("fault", [name for name in FAULTS if name.startswith(("race", "unwritten"))])
def test_races_are_for_their_option(fault):
    with machine.options(races=False):
        FAULTS[fault][0]()


def test_no_race_between_launches():
    out = floats()
    for _ in range(3):
        launch("all_write", 1, 4, out, 0, 0)


def test_masks_that_meet_one_after_the_other():
    out = ints(3)
    launch("nested_masks", 1, 3, out)
    assert out.tolist() == [1, 11, 10]


def test_barriers_left_out():
    """A mutation is found, and the kernel is whole again after it."""
    for number in (0, 1):
        with machine.without_barrier("rewrite", number) as line:
            assert line > 0
            with pytest.raises(RuntimeError, match=r"race in shared memory|nobody has written"):
                launch("rewrite", 1, 64, floats(), 1)
        launch("rewrite", 1, 64, floats(), 1)
    with machine.without_barrier("rewrite", 2) as line:
        assert line == 0
    assert machine.library().ptx_barrier(b"no kernel", 0, 1) == 0


def test_reads_out_of_bounds_as_findings():
    machine.statistics(clear=True)
    with machine.options(lenient=True):
        out = floats()
        launch("read_at", 1, 1, floats(), out, 256)
        assert out[0].isnan()
        with pytest.raises(RuntimeError, match="writes 4 bytes out of bounds"):
            launch("write_at", 1, 1, floats(), 256)
        launch("all_write", 1, 64, floats(), 1, 1)
    found = machine.statistics(clear=True)["findings"]
    assert "reads global memory out of bounds" in found["read_at"][0]
    assert "write different values to one place" in found["all_write"][0]


def test_copies_of_a_value():
    with machine.options(replicated=True):
        launch("all_write", 1, 64, floats(), 1, 0)
        launch("all_write_shared", 1, 64, floats(), 0)
        with pytest.raises(RuntimeError, match="race in global memory"):
            launch("all_write", 1, 64, floats(), 1, 1)
        with pytest.raises(RuntimeError, match="race in global memory"):
            launch("all_write", 2, 64, floats(), 0, 0)


def test_from_many_threads():
    failures = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                out = floats()
                launch("exchange", 1, 64, out, 1)
                assert out[:4].tolist() == [1, 0, 3, 2]
                with pytest.raises(RuntimeError, match=f"{number} bytes behind the end of one of 1024"):
                    launch("write_at", 1, 1, floats(), 256 + number // 4)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=[4 * k]) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
