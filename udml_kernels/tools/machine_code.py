"""The cost of a compiled kernel, read from its machine code: NVIDIA's SASS, or AMD's assembly."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# An instruction of `nvdisasm -c`: its address, an optional predicate, the operation, its operands.
_SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_SASS_LABEL = re.compile(r"^(\.L_x_\d+):")
_AMD = re.compile(r"^\t([a-z][a-z0-9_]*)(.*)")
_AMD_LABEL = re.compile(r"^(\.LBB\d+_\d+):")


@dataclass
class Code:
    """One kernel.

    Attributes:
        instructions: executed by a thread; those in loops count as often as `trips` says.
        widest: bytes of the widest global access of a thread, separately for loads and stores.
        spilled: bytes per thread that were spilled to memory: NVIDIA's local memory, AMD's scratch. Scalar registers
            that AMD spills to lanes of vector registers cost instructions, but no memory.
    """

    registers: int
    spilled: int
    shared: int
    instructions: float
    loops: int
    widest_load: int
    widest_store: int
    operations: dict[str, int] = field(default_factory=dict)


def _weighted(
    lines: Sequence[tuple[str, str, str]], trips: Sequence[float], branch: str, end: str, by_loop: bool = False
) -> tuple:
    """(instructions, loops) of (label, operation, operands) lines; code after `end` is padding.

    A branch to an earlier label closes a loop. An instruction within d loops counts trips[0] * ... * trips[d - 1]
    times; with `by_loop`, `trips` lists all loops, in the order in which they begin.
    """
    position = {label: i for i, (label, _, _) in enumerate(lines) if label}
    spans = []
    last = max((i for i, (_, op, _) in enumerate(lines) if op.startswith(end)), default=len(lines))
    for i, (_, op, operands) in enumerate(lines[:last]):
        target = re.search(r"\.L\w+", operands) if op.startswith(branch) else None
        if target and position.get(target[0], i + 1) <= i:
            spans.append((position[target[0]], i))
    # Two branches to one label form one loop.
    loops = {first: max(b for a, b in spans if a == first) for first, _ in spans}
    total = 0.0
    for i, (_, op, _) in enumerate(lines[: last + 1]):
        if not op or op == "NOP" or op == "s_nop":
            continue
        around = [n for n, (first, final) in enumerate(sorted(loops.items())) if first <= i <= final]
        weight = 1.0
        for d in around if by_loop else range(len(around)):
            weight *= trips[d] if d < len(trips) else 1.0
        total += weight
    return total, len(loops)


def _lines(text: str, instruction: re.Pattern, label: re.Pattern) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for line in text.splitlines():
        if match := label.match(line):
            found.append((match[1], "", ""))
        elif match := instruction.match(line):
            found.append(("", match[1], match[2]))
    return found


def _sass_width(operation: str) -> int:
    for part, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1), (".16", 2)):
        if part in operation:
            return size
    return 4


def of_sass(text: str, resources: str, trips: Sequence[float] = (), by_loop: bool = False) -> Code:
    """Code from the output of `nvdisasm -c` and `cuobjdump --dump-resource-usage` for one kernel."""
    lines = _lines(text, _SASS, _SASS_LABEL)
    instructions, loops = _weighted(lines, trips, "BRA", "EXIT", by_loop)
    usage = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", resources))
    widths: dict[str, int] = {"LDG": 0, "STG": 0}
    operations: dict[str, int] = {}
    local = 0
    for _, op, _ in lines:
        if not op:
            continue
        operations[op] = operations.get(op, 0) + 1
        name = op.split(".")[0]
        if name in widths:
            widths[name] = max(widths[name], _sass_width(op))
        local += _sass_width(op) if name in ("STL", "LDL") else 0
    spilled = max(local, int(usage.get("STACK", 0)), int(usage.get("LOCAL", 0)))
    registers, shared = int(usage.get("REG", 0)), int(usage.get("SHARED", 0))
    return Code(registers, spilled, shared, instructions, loops, widths["LDG"], widths["STG"], operations)


def of_amdgcn(text: str, trips: Sequence[float] = ()) -> Code:
    lines = _lines(text, _AMD, _AMD_LABEL)
    instructions, loops = _weighted(lines, trips, "s_cbranch", "s_endpgm")
    figures = {k: int(v) for k, v in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    widths = {"load": 0, "store": 0}
    for _, op, _ in lines:
        if match := re.match(r"(?:buffer|global|flat)_(load|store)_(\w+)", op):
            word = re.search(r"dwordx?(\d?)|(short|u16|i16|d16)|(byte|ubyte)", match[2])
            size = 4 * int(word[1] or 1) if word and word[0].startswith("dword") else 2 if word and word[2] else 1
            widths[match[1]] = max(widths[match[1]], size)
    spilled = max(figures.get("private_segment_fixed_size", 0), 4 * figures.get("vgpr_spill_count", 0))
    return Code(
        figures.get("vgpr_count", 0), spilled, figures.get("group_segment_fixed_size", 0), instructions, loops,
        widths["load"], widths["store"],
    )  # fmt: skip


def disassembled(cubin: bytes, tools: Path | None = None) -> tuple[str, str]:
    """(SASS, resource usage) of a cubin, from the nvdisasm and cuobjdump in `tools`, else from those on the PATH."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        results = []
        for name, option in (("nvdisasm", "-c"), ("cuobjdump", "--dump-resource-usage")):
            program = shutil.which(name, path=str(tools)) if tools else shutil.which(name)
            if program is None:
                raise RuntimeError(f"{name} was not found, neither in {tools} nor on the PATH")
            done = subprocess.run([program, option, str(file)], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr.strip()}")
            results.append(done.stdout)
    return results[0], results[1]
