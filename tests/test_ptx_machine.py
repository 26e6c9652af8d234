"""How the PTX interpreter executes warps and blocks, and its options."""

import itertools
import math

import numpy as np
import pytest
import torch

from .ptx import machine
from .ptx.snippets import BLOCK, evaluate, load, run_block, signed, unique

LANES = np.arange(32, dtype=np.uint32)


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    machine.library()


def shuffled(mode: str, by: int, lane: int, clamp: int, segment: int) -> tuple[int, bool]:
    """As the PTX ISA defines shfl."""
    last = (lane & segment) | (clamp & ~segment)
    first = lane & segment
    source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment & 31)}[mode]
    inside = source >= last if mode == "up" else source <= last
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode):
    for by, width in itertools.product((0, 1, 3, 16, 31), (1, 2, 8, 16, 32)):
        segment = 32 - width & 31
        clamp = 0 if mode == "up" else 31
        body = f"shfl.sync.{mode}.b32 %r0|%p0, %a, {by}, {segment << 8 | clamp}, -1; selp.u32 %r1, 256, 0, %p0;"
        got = evaluate(body + "add.u32 %d, %r0, %r1;", 32, LANES + 100, threads=32)
        expected = [shuffled(mode, by, lane, clamp, segment) for lane in range(32)]
        assert got.tolist() == [100 + source + 256 * inside for source, inside in expected], (by, width)


def test_votes_and_matches():
    values = np.array([3, 5, 3, 3, 5, 9, 0, 0] * 4, dtype=np.uint32)
    for mask in (0xFFFFFFFF, 0x0000FF00, 0x00000001, 0xF0F0F0F0):
        # Each lane has a mask that names it: those outside have theirs.
        choose = f"mov.u32 %r7, %laneid; mov.u32 %r8, 1; shl.b32 %r8, %r8, %r7; and.b32 %r9, %r8, {mask}; "
        choose += f"setp.ne.u32 %p7, %r9, 0; selp.b32 %r9, {mask}, {mask ^ 0xFFFFFFFF}, %p7; "
        members = [[k for k in range(32) if (mask >> k & 1) == (mask >> lane & 1)] for lane in range(32)]

        def run(body, choose=choose):
            return evaluate(choose + "setp.eq.u32 %p0, %a, 3; " + body, 32, values, threads=32).tolist()

        threes = [[bool(values[k] == 3) for k in lanes] for lanes in members]
        assert run("vote.sync.any.pred %p1, %p0, %r9; selp.u32 %d, 1, 0, %p1;") == [any(t) for t in threes]
        assert run("vote.sync.all.pred %p1, !%p0, %r9; selp.u32 %d, 1, 0, %p1;") == [not any(t) for t in threes]
        assert run("vote.sync.uni.pred %p1, %p0, %r9; selp.u32 %d, 1, 0, %p1;") == [len(set(t)) == 1 for t in threes]
        assert run("vote.sync.ballot.b32 %d, %p0, %r9;") == [
            sum(1 << k for k in lanes if values[k] == 3) for lanes in members
        ]
        equal = [sum(1 << k for k in members[lane] if values[k] == values[lane]) for lane in range(32)]
        assert run("match.any.sync.b32 %d, %a, %r9;") == equal
        everyone = [len({int(values[k]) for k in lanes}) == 1 for lanes in members]
        assert run("match.all.sync.b32 %r0|%p1, %a, %r9; selp.u32 %d, %r0, 0, %p1;") == [
            sum(1 << k for k in lanes) * same for lanes, same in zip(members, everyone, strict=True)
        ]
        reductions = {"add.u32": sum, "min.u32": min, "max.s32": max, "and.b32": np.bitwise_and.reduce,
                      "or.b32": np.bitwise_or.reduce, "xor.b32": np.bitwise_xor.reduce}  # fmt: skip
        for name, reduce in reductions.items():
            assert run(f"redux.sync.{name} %d, %a, %r9;") == [
                int(reduce([int(values[k]) for k in lanes])) for lanes in members
            ]
        assert run("elect.sync %r0|%p1, %r9; selp.u32 %r1, 32, 0, %p1; add.u32 %d, %r0, %r1;") == [
            lanes[0] + 32 * (lanes[0] == lane) for lane, lanes in enumerate(members)
        ]


def test_collectives_of_some_lanes():
    body = "setp.lt.u32 %p0, %a, 5; mov.u32 %d, 77; @%p0 bra IN; bra OUT; IN: activemask.b32 %d; "
    body += "shfl.sync.idx.b32 %r1, %a, 4, 31, 31; add.u32 %d, %d, %r1; OUT: bar.warp.sync -1;"
    assert evaluate(body, 32, LANES, threads=32).tolist() == [31 + 4] * 5 + [77] * 27


def test_divergence():
    # A loop of as many passes as the lane's number, with a branch in it; then the lanes are together again.
    body = """mov.u32 %r0, 0; mov.u32 %r1, 0;
    LOOP: setp.ge.u32 %p0, %r0, %a; @%p0 bra DONE; and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra EVEN;
    add.u32 %r1, %r1, 100; bra NEXT; EVEN: add.u32 %r1, %r1, %r0; NEXT: add.u32 %r0, %r0, 1; bra LOOP;
    DONE: activemask.b32 %r3; setp.eq.u32 %p2, %r3, -1; selp.u32 %r3, 0, 1000000, %p2; add.u32 %d, %r1, %r3;"""
    expected = [sum(100 if k % 2 else k for k in range(n)) for n in range(32)]
    assert evaluate(body, 32, LANES, threads=32).tolist() == expected


def test_calls_and_local_memory():
    # Squares into local memory of the caller, which a function reads by a generic address; it has local memory too.
    function = """
.func (.param .b32 result) pick(.param .b64 table, .param .b32 index)
{ .reg .b32 %i<4>; .reg .b64 %x<6>; .local .align 4 .b8 mine[16];
  ld.param.u32 %i0, [index]; ld.param.u64 %x0, [table]; mul.wide.u32 %x1, %i0, 4; add.u64 %x2, %x0, %x1;
  ld.u32 %i1, [%x2]; mov.u64 %x3, mine; st.local.u32 [%x3+8], %i1; ld.local.u32 %i2, [mine+8];
  st.param.b32 [result], %i2; ret; }
"""
    body = """.local .align 4 .b8 squares[128]; mov.u64 %w0, squares; cvta.local.u64 %w1, %w0; mov.u32 %r0, 0;
    FILL: mul.lo.u32 %r1, %r0, %r0; mad.lo.u32 %r1, %a, 1000, %r1; mad.wide.u32 %w2, %r0, 4, %w0;
    st.local.u32 [%w2], %r1; add.u32 %r0, %r0, 1; setp.lt.u32 %p0, %r0, 32; @%p0 bra FILL;
    { .param .b64 p0; .param .b32 p1; .param .b32 back; st.param.b64 [p0], %w1; st.param.b32 [p1], %a;
      call.uni (back), pick, (p0, p1); ld.param.b32 %d, [back]; }"""
    got = evaluate(body, 32, LANES, threads=32, outside=function)
    assert got.tolist() == [1000 * n + n * n for n in range(32)]


def test_barrier_reductions():
    out = torch.zeros(96, dtype=torch.int32)
    body = "setp.lt.u32 %p0, %r0, 40; bar.red.popc.u32 %r4, 0, %p0; bar.red.or.pred %p1, 0, %p0; "
    body += "barrier.sync.aligned 0; barrier.red.and.pred.aligned %p2, 0, %p0; "
    body += "selp.u32 %r5, 100, 0, %p1; selp.u32 %r6, 1000, 0, %p2; add.u32 %r4, %r4, %r5; add.u32 %r4, %r4, %r6; "
    assert run_block(body + "st.global.u32 [%w1], %r4;", 1, 96, out) == [140] * 96


def test_shared_memory_is_refilled_for_every_block():
    out = torch.zeros(4, dtype=torch.int32)
    with machine.options(races=False):
        body = "ld.shared.u32 %r4, [tile]; st.shared.u32 [tile], 1; st.global.u32 [%w1], %r4;"
        assert run_block(body, 4, 1, out) == [-1] * 4


def test_order_of_warps_and_blocks():
    for warps, blocks in itertools.product((False, True), repeat=2):
        turn = torch.zeros(1 + 4 * 64, dtype=torch.int32)
        with machine.options(reverse_warps=warps, reverse_blocks=blocks):
            run_block("atom.global.add.u32 %r4, [%w0], 1; st.global.u32 [%w1+4], %r4;", 4, 64, turn)
        turns = turn[1:].view(4, 2, 32)
        expected = torch.arange(256).view(4, 2, 32)
        expected = expected.flip(0) if blocks else expected
        assert torch.equal(turns, (expected.flip(1) if warps else expected).int())


def test_indices():
    name = unique("indices")
    specials = ["tid", "ntid", "ctaid", "nctaid"]
    body = "".join(f"mov.u32 %r{k}, %{s}.{x}; " for k, (s, x) in enumerate(itertools.product(specials, "xyz")))
    # (block in the grid) * threads + thread
    body += "mad.lo.u32 %r12, %r8, %r10, %r7; mad.lo.u32 %r12, %r12, %r9, %r6; mul.lo.u32 %r13, %r3, %r4; "
    body += "mul.lo.u32 %r13, %r13, %r5; mad.lo.u32 %r14, %r2, %r4, %r1; mad.lo.u32 %r14, %r14, %r3, %r0; "
    body += "mad.lo.u32 %r14, %r12, %r13, %r14; mad.wide.u32 %w1, %r14, 4, %w0; red.global.add.u32 [%w1], 1; "
    load(BLOCK.format(name=name, body=body), name)
    launches = [((1, 1, 1), (1, 1, 1)), ((2, 3, 4), (5, 3, 2)), ((7, 1, 2), (1, 33, 1)), ((1, 2, 1), (64, 1, 9))]
    for grid, block in launches:
        out = torch.zeros(math.prod(grid) * math.prod(block), dtype=torch.int32)
        machine.launch(name, grid, block, [out.data_ptr().to_bytes(8, "little")])
        assert out.tolist() == [1] * len(out)


ATOMICS = {
    "add.u32": lambda old, b: old + b, "add.s32": lambda old, b: old + b, "min.u32": min, "max.u32": max,
    "and.b32": lambda old, b: old & b, "or.b32": lambda old, b: old | b, "xor.b32": lambda old, b: old ^ b,
    "exch.b32": lambda old, b: b, "inc.u32": lambda old, b: 0 if old >= b else old + 1,
    "dec.u32": lambda old, b: b if old == 0 or old > b else old - 1,
    "min.s32": lambda old, b: min(old, b, key=lambda x: signed(x, 32)),
    "max.s32": lambda old, b: max(old, b, key=lambda x: signed(x, 32)),
}  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name, space):
    operands = [0xFFFFFFF0 + k if k % 3 else k + 2 for k in range(16)]
    out = torch.zeros(40, dtype=torch.int32)
    out[16] = 7
    out[17:33] = torch.tensor([signed(x, 32) for x in operands], dtype=torch.int32)
    place = "%w0+64" if space == "global" else "tile"
    body = "ld.global.u32 %r4, [%w1+68]; setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [tile], 7; bar.sync 0; "
    body += f"atom.{space}.{name} %r5, [{place}], %r4; st.global.u32 [%w1], %r5; bar.sync 0; "
    body += f"ld.{space}.u32 %r6, [{place}]; @%p0 st.global.u32 [%w0+132], %r6;"
    got = [x % 2**32 for x in run_block(body, 1, 16, out)]
    old, seen = 7, []
    for b in operands:
        seen.append(old)
        old = ATOMICS[name](old, b) % 2**32
    assert got[:16] == seen and got[33] == old


def test_other_atomics():
    out = torch.zeros(64, dtype=torch.float64)
    add = "mov.f64 %w2, 0d3FE0000000000000; red.global.add.f64 [%w0], %w2; mov.f32 %r4, 0f3E800000; "
    add += "red.global.add.f32 [%w0+8], %r4; mov.u64 %w3, 0x100000000; red.global.add.u64 [%w0+16], %w3; "
    run_block(add + "atom.global.cas.b64 %w4, [%w0+24], 0, 5;", 2, 64, out)
    assert out[0] == 64 and out[1:2].view(torch.float32)[0] == 32
    assert out[2:4].view(torch.int64).tolist() == [128 << 32, 5]


def test_cp_async():
    out = torch.zeros(64 + 64, dtype=torch.int32)
    out[64:] = torch.arange(64, dtype=torch.int32)
    body = "mov.u32 %r4, tile; mad.lo.u32 %r4, %r0, 16, %r4; mad.wide.u32 %w2, %r0, 16, %w0; "
    body += "cp.async.cg.shared.global [%r4], [%w2+256], 16; setp.eq.u32 %p0, %r0, 3; selp.u32 %r6, 0, 4, %p0; "
    body += "cp.async.ca.shared.global [%r4+512], [%w2+260], 4, %r6; cp.async.commit_group; cp.async.wait_group 0; "
    body += "bar.sync 0; xor.b32 %r5, %r0, 15; mad.lo.u32 %r5, %r5, 16, 0; ld.shared.v2.u32 {%r6, %r7}, [%r5+8]; "
    body += "mad.lo.u32 %r9, %r0, 16, 512; ld.shared.u32 %r8, [%r9]; mad.wide.u32 %w3, %r0, 12, %w0; "
    body += "st.global.u32 [%w3], %r6; st.global.u32 [%w3+4], %r7; st.global.u32 [%w3+8], %r8;"
    got = torch.tensor(run_block(body, 1, 16, out)[:48]).view(16, 3)
    expected = [[4 * (15 - k) + 2, 4 * (15 - k) + 3, 0 if k == 3 else 4 * k + 1] for k in range(16)]
    assert got.tolist() == expected


def test_cp_async_before_its_wait():
    body = "mov.u32 %r4, tile; cp.async.ca.shared.global [%r4], [%w0], 4; cp.async.commit_group; "
    with pytest.raises(RuntimeError, match="nobody has written"):
        run_block(body + "ld.shared.u32 %r5, [tile];", 1, 1, torch.zeros(1, dtype=torch.int32))


APPROXIMATE = {  # instruction: truth, relative error, absolute error
    "ex2.approx.ftz.f32": (np.exp2, 2.0**-22, 0), "lg2.approx.ftz.f32": (np.log2, 2.0**-22, 2.0**-22),
    "sin.approx.ftz.f32": (np.sin, 0, 2.0**-20.5), "cos.approx.ftz.f32": (np.cos, 0, 2.0**-20.5),
    "sqrt.approx.ftz.f32": (np.sqrt, 2.0**-23, 0), "rcp.approx.ftz.f32": (lambda x: 1 / x, 2.0**-23, 0),
    "rsqrt.approx.ftz.f32": (lambda x: 1 / np.sqrt(x), 2.0**-22.4, 0), "tanh.approx.f32": (np.tanh, 2.0**-11, 0),
    "div.full.f32": (lambda x: 3 / x, 2.0**-22, 0), "div.approx.f32": (lambda x: 3 / x, 2.0**-22, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_instructions(name):
    truth, relative, absolute = APPROXIMATE[name]
    a = np.random.default_rng(3).uniform(0.1, 4, 2048).astype(np.float32)
    exact = truth(a.astype(np.float64))
    operands = "0f40400000, %a" if "div" in name else "%a"
    bound = relative * np.abs(exact) + absolute + 2.0**-24 * np.abs(exact)
    errors = {}
    for approximate in machine.APPROXIMATE:
        with machine.options(approximate=approximate):
            errors[approximate] = evaluate(f"{name} %d, {operands};", 32, a).view(np.float32) - exact
        assert (np.abs(errors[approximate]) <= bound * 1.01).all()
    assert np.abs(errors["exact"]).max() < np.abs(errors["plus"]).max()
    signs = np.sign(errors["random"])
    assert 0.4 < (signs > 0).mean() < 0.6
    # A relative error goes away from 0, or towards it.
    by_size = (a <= 0.5) | (a >= 2) if "lg2" in name else absolute == 0
    direction = np.where(by_size, np.sign(exact), 1)
    assert (errors["plus"] * direction > 0).mean() > 0.9 and (errors["minus"] * direction < 0).mean() > 0.9


def test_what_cannot_be_executed():
    with pytest.raises(RuntimeError, match=r"snippet_\d+\.ptx:\d+: cannot execute tcgen05\.alloc\.b32 in snippet_"):
        evaluate("tcgen05.alloc.b32 %d, %a;", 32, LANES)
    with pytest.raises(RuntimeError, match=r"cannot execute add\.cc\.u32"):
        evaluate("add.cc.u32 %d, %a, %a;", 32, LANES)
    with pytest.raises(RuntimeError, match=r"cannot execute bar\.sync"):
        evaluate("bar.sync 1; mov.u32 %d, 0;", 32, LANES)
    with pytest.raises(RuntimeError, match="too few operands"):
        evaluate("shfl.sync.idx.b32 %d, %a, 0;", 32, LANES)
    with pytest.raises(RuntimeError, match="unknown symbol nowhere"):
        evaluate("ld.global.u32 %d, [nowhere];", 32, LANES)


def test_statistics_and_sample():
    out = torch.zeros(64 * 10, dtype=torch.int32)
    machine.statistics(clear=True)
    with machine.options(statistics=2, sampled=2):
        run_block("st.global.u32 [%w1], 1; setp.gt.u32 %p0, %r0, 99; @%p0 bra AWAY; AWAY: ", 10, 64, out)
    assert out.view(10, 64)[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    counts = machine.statistics(clear=True)
    (kernel,) = counts["kernels"].values()
    assert counts["launches"] == kernel["launches"] == 1 and kernel["blocks"] == 10
    assert kernel["instructions"] == 2 * 4 * (kernel["static"] - 1) and kernel["lanes"] == 32 * kernel["instructions"]
    assert kernel["requests"] == 8 and kernel["sectors"] == kernel["ideal"] == 8 * 4
    assert machine.statistics()["kernels"] == {}
