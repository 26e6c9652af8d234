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


@pytest.mark.parametrize("copies", [True, False])
def test_rows_that_stmatrix_writes_to_one_place(copies):
    """Copies of a row are no race where copies are allowed, as Triton's compiler makes them; different rows are."""
    out = torch.zeros(4, dtype=torch.int32)
    # All eight rows are stored at address 0. Each element of a row is the row's number; with `copies` it is 7.
    body = f"shr.u32 %r4, %r0, 2; {'mov.u32 %r4, 7; ' if copies else ''}mov.u32 %r8, 0; "
    body += "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r8], {%r4}; bar.sync 0; "
    body += "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r8]; st.global.v4.u32 [%w0], {%r4, %r5, %r6, %r7};"
    with machine.options(replicated=True):
        if copies:
            run_block(body, 1, 32, out)
            assert out.tolist() == [7] * 4
        else:
            with pytest.raises(RuntimeError, match="race in shared memory"):
                run_block(body, 1, 32, out)


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


DTYPES = {
    "bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "f32": torch.float32, "f64": torch.float64
}  # fmt: skip


def depth(shape: str) -> int:
    return int(shape[shape.index("k") + 1 :])


def product(
    shape: str, kind: str, sums: str, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> tuple[torch.Tensor, list]:
    """A B + C by one instruction: of each lane its results, and their places."""
    places = fragment_places(kind, int(shape[1 : shape.index("n")]), depth(shape))
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
    return memory[base:].view(DTYPES[sums]).view(32, -1).double(), places[2]


@pytest.mark.parametrize(("shape", "kind", "sums"), sorted(MMA))
def test_mma(shape, kind, sums):
    m, k = int(shape[1 : shape.index("n")]), depth(shape)
    generator = torch.Generator().manual_seed(k)
    A, B, C = (torch.randn(s, generator=generator, dtype=torch.float64).to(DTYPES[d])
               for s, d in (((m, k), kind), ((k, 8), kind), ((m, 8), sums)))  # fmt: skip
    if kind == "tf32":
        A, B = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (A, B))
    got, places = product(shape, kind, sums, A, B, C)
    truth = A.double() @ B.double() + C.double()
    expected = torch.stack([torch.stack([truth[at] for at in lane]) for lane in places])
    tolerance = {"f32": 2e-6, "f64": 1e-14, "f16": 6e-3}[sums]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


# The addend, the products in the order of k (the last one repeats), and their sum as an A100 makes it: n at once are
# aligned to the largest, cut off below 2^-24 of it, added, and the sum is cut off below 2^-23 of itself.
SMALL = 2.0**-25
SUMS = {
    "each is cut off": lambda n: (1.0, [SMALL], 1.0),
    "one more bit than in float32": lambda n: (1.0, [2 * SMALL] * n + [0.0], 1 + n * 2 * SMALL),
    "the sum is not rounded": lambda n: (1.0, [2 * SMALL] * 3 + [0.0], 1 + 4 * SMALL),
    "neither below zero": lambda n: (-1.0, [-2 * SMALL] * 3 + [0.0], -1 - 4 * SMALL),
    "not to the addend alone": lambda n: (SMALL, [1.0, 0.0], 1.0),
    "in turns": lambda n: (0.0, [SMALL] * n + [1.0, 0.0], 1 + n * SMALL),
    "infinity": lambda n: (1.0, [float("inf"), 0.0], float("inf")),
    "infinities": lambda n: (float("-inf"), [float("inf"), 0.0], float("nan")),
    "subnormal": lambda n: (2.0**-149, [0.0], 2.0**-149),
}


@pytest.mark.parametrize("what", SUMS)
@pytest.mark.parametrize(("shape", "kind"), [("m16n8k16", "bf16"), ("m16n8k16", "f16"), ("m16n8k8", "tf32")])
def test_sums_are_those_of_the_hardware(shape, kind, what):
    k = depth(shape)
    addend, products, expected = SUMS[what](4 if kind == "tf32" else 8)
    products += products[-1:] * (k - len(products))
    factors = torch.tensor(products)
    # Both factors are normal numbers of float16.
    scale = torch.where(factors.abs() < 1, 2.0**12, 1.0)
    A, B = (factors * scale).to(DTYPES[kind]).repeat(16, 1), (1 / scale).to(DTYPES[kind])[:, None].repeat(1, 8)
    got, _ = product(shape, kind, "f32", A, B, torch.full((16, 8), addend))
    assert torch.equal(got.nan_to_num(7.0), torch.full_like(got, expected).nan_to_num(7.0)), (got[0, 0], expected)
