"""The cost of a compiled kernel, read from its machine code: NVIDIA's SASS, or AMD's assembly."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# An instruction of `nvdisasm -c`: its address, an optional predicate, the operation.
_SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_AMD = re.compile(r"^\t([a-z][a-z0-9_]*)")


@dataclass
class Code:
    """One kernel.

    Attributes:
        instructions: those in the code of a kernel for NVIDIA, up to its last exit; 0 for AMD.
        widest: bytes of the widest global access of a thread, separately for loads and stores.
        spilled: bytes per thread that were spilled to memory: NVIDIA's local memory, AMD's scratch. Scalar registers
            that AMD spills to lanes of vector registers cost instructions, but no memory.
    """

    registers: int
    spilled: int
    shared: int
    widest_load: int
    widest_store: int
    instructions: int = 0


def _operations(text: str, instruction: re.Pattern) -> list[str]:
    """The operation of each line that is an instruction."""
    return [match[1] for line in text.splitlines() if (match := instruction.match(line))]


def _sass_width(operation: str) -> int:
    for part, size in ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1), (".16", 2)):
        if part in operation:
            return size
    return 4


def of_sass(text: str, resources: str) -> Code:
    """Code from the output of `nvdisasm -c` and `cuobjdump --dump-resource-usage` for one kernel."""
    usage = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", resources))
    widths: dict[str, int] = {"LDG": 0, "STG": 0}
    local = 0
    operations = _operations(text, _SASS)
    for op in operations:
        name = op.split(".")[0]
        if name in widths:
            widths[name] = max(widths[name], _sass_width(op))
        local += _sass_width(op) if name in ("STL", "LDL") else 0
    spilled = max(local, int(usage.get("STACK", 0)), int(usage.get("LOCAL", 0)))
    registers, shared = int(usage.get("REG", 0)), int(usage.get("SHARED", 0))
    last = max((i for i, op in enumerate(operations) if op.startswith("EXIT")), default=len(operations) - 1)
    instructions = sum(op != "NOP" for op in operations[: last + 1])
    return Code(registers, spilled, shared, widths["LDG"], widths["STG"], instructions)


def of_amdgcn(text: str) -> Code:
    figures = {k: int(v) for k, v in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    widths = {"load": 0, "store": 0}
    for op in _operations(text, _AMD):
        if match := re.match(r"(?:buffer|global|flat)_(load|store)_(\w+)", op):
            word = re.search(r"dwordx?(\d?)|(short|u16|i16|d16)|(byte|ubyte)", match[2])
            size = 4 * int(word[1] or 1) if word and word[0].startswith("dword") else 2 if word and word[2] else 1
            widths[match[1]] = max(widths[match[1]], size)
    spilled = max(figures.get("private_segment_fixed_size", 0), 4 * figures.get("vgpr_spill_count", 0))
    shared = figures.get("group_segment_fixed_size", 0)
    return Code(figures.get("vgpr_count", 0), spilled, shared, widths["load"], widths["store"])


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
