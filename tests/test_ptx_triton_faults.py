"""Each check of the PTX interpreter finds a fault planted in a kernel as Triton emits it."""

import pytest
import torch

from .ptx import machine
from .ptx.snippets import launch, unique


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    machine.library()


# A sum of each program's tile, as Triton compiles it for sm_80, without debug information.
TRITON = """
.version 8.7
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry NAME(
	.param .u64 .ptr .global .align 1 NAME_param_0,
	.param .u64 .ptr .global .align 1 NAME_param_1,
	.param .u32 NAME_param_2,
	.param .u64 .ptr .global .align 1 NAME_param_3,
	.param .u64 .ptr .global .align 1 NAME_param_4
)
.reqntid 128
{
	.reg .pred 	%p<6>;
	.reg .b32 	%r<48>;
	.reg .b64 	%rd<10>;
	ld.param.b64 	%rd1, [NAME_param_0];
	ld.param.b64 	%rd2, [NAME_param_1];
	ld.param.b32 	%r1, [NAME_param_2];
	mov.u32 	%r2, %ctaid.x;
	shl.b32 	%r3, %r2, 7;
	mov.u32 	%r4, %tid.x;
	and.b32 	%r5, %r4, 127;
	or.b32 	%r6, %r3, %r5;
	setp.lt.s32 	%p1, %r6, %r1;
	mad.wide.s32 	%rd3, %r6, 4, %rd1;
	mov.b32 	%r8, 0;
	// begin inline asm
	mov.u32 %r7, %r8;
	@%p1 ld.global.b32 { %r7 }, [ %rd3 + 0 ];
	// end inline asm
	shfl.sync.bfly.b32 	%r9, %r7, 16, 31, -1;
	add.f32 	%r10, %r7, %r9;
	shfl.sync.bfly.b32 	%r11, %r10, 8, 31, -1;
	add.f32 	%r12, %r10, %r11;
	shfl.sync.bfly.b32 	%r13, %r12, 4, 31, -1;
	add.f32 	%r14, %r12, %r13;
	shfl.sync.bfly.b32 	%r15, %r14, 2, 31, -1;
	add.f32 	%r16, %r14, %r15;
	shfl.sync.bfly.b32 	%r17, %r16, 1, 31, -1;
	add.f32 	%r18, %r16, %r17;
	and.b32 	%r19, %r4, 31;
	setp.eq.b32 	%p2, %r19, 0;
	shr.u32 	%r20, %r4, 3;
	and.b32 	%r21, %r20, 12;
	mov.b32 	%r22, global_smem;
	add.s32 	%r23, %r22, %r21;
	// begin inline asm
	@%p2 st.shared.b32 [ %r23 + 0 ], %r18;
	// end inline asm
	bar.sync 	0;
	setp.lt.s32 	%p3, %r4, 4;
	shl.b32 	%r24, %r4, 2;
	add.s32 	%r25, %r22, %r24;
	// begin inline asm
	@%p3 ld.shared.b32 %r26, [ %r25 + 0 ];
	// end inline asm
	shfl.sync.bfly.b32 	%r27, %r26, 2, 31, -1;
	add.f32 	%r28, %r26, %r27;
	shfl.sync.bfly.b32 	%r29, %r28, 1, 31, -1;
	add.f32 	%r30, %r28, %r29;
	setp.eq.b32 	%p4, %r4, 0;
	// begin inline asm
	@%p4 st.shared.b32 [ %r25 + 0 ], %r30;
	// end inline asm
	bar.sync 	0;
	ld.shared.b32 	%r31, [global_smem];
	mad.wide.u32 	%rd4, %r2, 4, %rd2;
	setp.eq.b32 	%p5, %r5, 0;
	// begin inline asm
	@%p5 st.global.b32 [ %rd4 + 0 ], { %r31 };
	// end inline asm
	ret;
}
"""
MASKED = "@%p1 ld.global.b32 { %r7 }, [ %rd3 + 0 ];"
BARRIER = "\tbar.sync \t0;\n"
# Fault: what is replaced, by what, the message.
TRITON_FAULTS = {
    "load without mask": (MASKED, "ld.global.b32 { %r7 }, [ %rd3 + 0 ];", "reads 4 bytes out of bounds"),
    "load of a wrong mask": ("setp.lt.s32 \t%p1", "setp.le.s32 \t%p1", "reads 4 bytes out of bounds"),
    "store past the end": ("[ %rd4 + 0 ]", "[ %rd4 + 4 ]", "0 bytes behind the end of one of 12"),
    "two programs write one place": (
        "mad.wide.u32 \t%rd4, %r2", "mad.wide.u32 \t%rd4, 0", "race in global memory: writes"),
    "every thread writes": ("@%p5 st.global.b32", "st.global.b32", "race in global memory: writes"),
    "one program reads what another writes": (
        "ld.param.b64 \t%rd2, [NAME_param_1]", "ld.param.b64 \t%rd2, [NAME_param_0]", "race in global memory"),
    "no barrier": (BARRIER + "\tsetp.lt", "\tsetp.lt", "nobody has written"),
    "no second barrier": (BARRIER + "\tld.shared", "\tld.shared", "race in shared memory"),
    "shared memory past the end": ("[ %r23 + 0 ]", "[ %r23 + 4 ]", "of shared memory out of bounds"),
    "shared memory unwritten": ("@%p2 st.shared", "@%p4 st.shared", "nobody has written"),
    "misaligned vector": (
        MASKED, "@%p1 ld.global.v2.b32 { %r7, %r9 }, [ %rd3 + 0 ];", "misaligned access of 8 bytes"),
    "shuffle of some lanes": (
        "shfl.sync.bfly.b32 \t%r29", "@%p3 shfl.sync.bfly.b32 \t%r29", "which never come"),
    "no lanes for a barrier": ("\tret;", "\t@%p3 bar.sync 0;\n\tret;", "waits at a barrier, while thread (4,0,0)"),
    "wrong number of threads": (".reqntid 128", ".reqntid 64", "more threads in a block than the 64"),
}  # fmt: skip


def sum_tiles(text: str, replicated: bool = False) -> None:
    name, x, out = unique("tiles"), torch.arange(300.0), torch.zeros(3)
    machine.load(text.replace("NAME", name), f"{name}.ptx")
    with machine.options(replicated=replicated):
        launch(name, 3, 128, x, out, 300, 0, 0, shared=16)
    assert out.tolist() == [x[k : k + 128].sum() for k in (0, 128, 256)]


def test_triton_kernel():
    sum_tiles(TRITON)


@pytest.mark.parametrize("fault", TRITON_FAULTS)
def test_fault_in_a_triton_kernel(fault):
    old, new, message = TRITON_FAULTS[fault]
    assert TRITON.count(old) == 1
    with pytest.raises(RuntimeError, match="tiles_") as error:
        sum_tiles(TRITON.replace(old, new))
    assert message in str(error.value)


def test_every_thread_writes_its_copy():
    sum_tiles(TRITON.replace("@%p5 st.global.b32", "st.global.b32"), replicated=True)
