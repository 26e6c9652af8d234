"""The matrix instructions of the PTX interpreter against float64."""

import pytest
import torch

from .ptx import machine
from .ptx.snippets import BLOCK, launch, load, run_block, unique


@pytest.fixture(scope="module", autouse=True)
def interpreter():
    machine.library()


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(transposed):
    out = torch.zeros(128 + 128, dtype=torch.int32)
    matrices = torch.arange(4 * 64, dtype=torch.int16).view(4, 8, 8)
    out[128:] = matrices.flatten().view(torch.int32)
    trans = ".trans" if transposed else ""
    body = "mad.wide.u32 %w2, %r0, 16, %w0; ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%w2+512]; shl.b32 %r8, %r0, 4; "
    body += "st.shared.v4.u32 [%r8], {%r4, %r5, %r6, %r7}; bar.sync 0; "
    body += f"ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r4, %r5, %r6, %r7}}, [%r8]; bar.warp.sync -1; "
    body += "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r8], {%r7, %r6, %r5, %r4}; bar.sync 0; "
    body += "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r8]; st.global.v4.u32 [%w2], {%r4, %r5, %r6, %r7};"
    run_block(body, 1, 32, out)
    got = out[:128].view(torch.int16).view(4, 8, 8)
    expected = matrices.flip(0)
    assert torch.equal(got, expected.transpose(1, 2) if transposed else expected)


MMA = {  # shape, type of the elements, type of the sums
    ("m16n8k8", "bf16", "f32"), ("m16n8k16", "bf16", "f32"), ("m16n8k8", "f16", "f32"), ("m16n8k16", "f16", "f32"),
    ("m16n8k16", "f16", "f16"), ("m16n8k4", "tf32", "f32"), ("m16n8k8", "tf32", "f32"), ("m8n8k4", "f64", "f64"),
    ("m16n8k4", "f64", "f64"), ("m16n8k8", "f64", "f64"), ("m16n8k16", "f64", "f64"),
}  # fmt: skip


def fragment_places(kind: str, m: int, k: int) -> tuple[list, list, list]:
    """Of each lane the places of its elements in A, B and C, in the order of its registers, as the ISA lists them."""
    a, b, c = [], [], []
    for lane in range(32):
        group, within = lane // 4, lane % 4
        rows = [group + 8 * r for r in range(m // 8)]
        if kind in ("f16", "bf16"):
            columns = [[8 * block + 2 * within + h for h in (0, 1)] for block in range(k // 8)]
        else:
            columns = [[4 * block + within] for block in range(k // 4)]
        a.append([(row, column) for pair in columns for row in rows for column in pair])
        b.append([(column, group) for pair in columns for column in pair])
        c.append([(row, 2 * within + h) for row in rows for h in (0, 1)])
    return a, b, c


@pytest.mark.parametrize(("shape", "kind", "sums"), sorted(MMA))
def test_mma(shape, kind, sums):
    m, k = int(shape[1 : shape.index("n")]), int(shape[shape.index("k") + 1 :])
    generator = torch.Generator().manual_seed(k)
    dtypes = {"bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64} | dict.fromkeys(
        ("tf32", "f32"), torch.float32
    )
    A, B, C = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtypes[d])
               for s, d in (((m, k), kind), ((k, 8), kind), ((m, 8), sums)))  # fmt: skip
    if kind == "tf32":
        A, B = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (A, B))
    places = fragment_places(kind, m, k)
    fragments = [
        torch.stack([torch.stack([matrix[at] for at in lane]) for lane in where])
        for matrix, where in zip((A, B, C), places, strict=True)
    ]
    width = 8 if kind == "f64" else 4
    words = [f.contiguous().view(torch.uint8).view(32, -1, width) for f in fragments]
    counts = [w.shape[1] for w in words]
    memory = torch.cat([w.flatten() for w in words] + [torch.zeros(32 * counts[2] * width, dtype=torch.uint8)])
    bits, register, lines, base = 8 * width, "%w" if width == 8 else "%r", [], 0
    names, number = [], 4
    for count in counts:
        names.append([f"{register}{number + j}" for j in range(count)])
        number += count
        lines.append(f"mad.wide.u32 %w1, %r0, {count * width}, %w0;")
        lines += [f"ld.global.b{bits} {name}, [%w1+{base + j * width}];" for j, name in enumerate(names[-1])]
        base += 32 * count * width
    results = [f"{register}{number + j}" for j in range(counts[2])]
    lists = ", ".join("{" + ", ".join(group) + "}" for group in (results, *names))
    lines.append(f"mma.sync.aligned.{shape}.row.col.{sums}.{kind}.{kind}.{sums} {lists};")
    lines.append(f"mad.wide.u32 %w1, %r0, {counts[2] * width}, %w0;")
    lines += [f"st.global.b{bits} [%w1+{base + j * width}], {name};" for j, name in enumerate(results)]
    name = unique("mma")
    text = BLOCK.format(name=name, body=" ".join(lines)).replace("%r<16>", "%r<64>").replace("%w<8>", "%w<64>")
    load(text, name)
    launch(name, 1, 32, memory)
    got = memory[base:].view(dtypes[sums]).view(32, -1).double()
    truth = A.double() @ B.double() + C.double()
    expected = torch.stack([torch.stack([truth[at] for at in lane]) for lane in places[2]])
    tolerance = {"f32": 2e-6, "f64": 1e-14, "f16": 6e-3}[sums]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
