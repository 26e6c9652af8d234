"""Executed instructions and memory traffic of the GPU kernels, as counted by the tests, and the time that follows.

`counts.csv` holds them, a row a kernel; `make counts` makes it. The prediction is arithmetic, not a measurement:

- memory: the call's ideal bytes at the bandwidth of a copy, 90 % of the card's;
- issue: machine instructions, those of idle lanes included, over 132 multiprocessors x 4 schedulers x 32 lanes x
  1.78 GHz, at 85 % of that rate. They are the executed PTX instructions, times the kernel's length in machine code over
  its length in PTX;
- tensor cores: the products of matrix instructions, at 62 % of the rate for dense matrices (of 16-bit elements 4096
  floating-point operations per clock and multiprocessor, so 989 10^12 per second at 1.83 GHz; TF32 half of it: NVIDIA
  H100 Tensor Core GPU Architecture). Only warpgroup instructions reach the full rate; `mma.sync` reaches 62 % on
  average (Luo et al., Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking, 2024);
- cache: the sectors of all requests over 132 multiprocessors x 128 bytes x 1.78 GHz;
- a call's time is (memory^3 + issue^3 + tensor cores^3 + cache^3)^(1/3), as what takes about the same time does not
  overlap fully; its share of a copy's bandwidth is memory / time.

Latency, waves of blocks and launches (2 to 3 us each) are left out.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import get_type_hints

from .table import table

FILE = Path(__file__).with_name("counts.csv")
# Bytes per second; thread instructions per second; bytes per second of all first-level caches.
BANDWIDTH = {"H100": 0.9 * 3.35e12, "H200": 0.9 * 4.8e12}
ISSUE = 0.85 * 132 * 4 * 32 * 1.78e9
# Products of 16-bit elements per second.
PRODUCTS = 0.62 * 132 * 2048 * 1.78e9
CACHE = 132 * 128 * 1.78e9


@dataclass(frozen=True)
class Count:
    """One kernel of one work. All figures but launches and bytes (of the whole call) are per element of the work."""

    backend: str
    dtype: str
    work: str
    kernel: str
    launches: int
    instructions: float
    machine: float
    lanes: float
    sectors: float
    conflicts: float
    bytes: float
    # On tensor cores; one of TF32 counts as two of 16-bit elements, one of float64 as 16.
    products: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.backend, self.dtype, self.work, self.kernel


def share(call: list[Count], card: str) -> float:
    """The predicted share of a copy's bandwidth that a call reaches on a card, from its kernels' counts."""
    sectors = max(call, key=lambda row: row.machine).sectors
    memory, issue = call[0].bytes / BANDWIDTH[card], sum(row.machine for row in call) / ISSUE
    cache, tensor_cores = call[0].bytes * sectors / CACHE, sum(row.products for row in call) / PRODUCTS
    return memory / (memory**3 + issue**3 + tensor_cores**3 + cache**3) ** (1 / 3)


def read() -> list[Count]:
    """The recorded counts; empty where there is no file."""
    if not FILE.exists():
        return []
    kinds = get_type_hints(Count)
    with FILE.open(newline="") as file:
        return [Count(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def write(counted: Iterable[Count]) -> None:
    """Replace the rows of the same kernels, and add the others."""
    rows = {row.key: row for row in (*read(), *counted)}
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Count)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows.values(), key=astuple))


# The works of the table in docs/performance.md.
SHOWN = (
    "normal 64x65536",
    "inject_noise 64x3x128x128 gaussian",
    "inject_noise_backward gaussian",
    "reparameterize 4096x512",
    "reparameterize 64x512x7x7",
    "reparameterize 64x512x14x14",
    "reparameterize_backward 64x512x14x14",
    "reparameterize 64x512x14x14 channels last",
    "reparameterize_backward 64x512x14x14 channels last",
    "reparameterize_pooled 64x512x7x7",
    "reparameterize_pooled 64x512x14x14",
    "reparameterize_pooled_backward 64x512x14x14",
    "weighted_fusion 4096x512 features",
    "weighted_fusion_backward features",
    "weighted_fusion 8x256x60x80 per location",
    "weighted_fusion_backward per location",
    "modality_dropout 4096x512 2 modalities",
    "evidential_fusion 4096x3x34",
    "evidential_loss 4096x34",
    "evidential_loss_backward 4096x34",
    "noise_regression 2x64x512x256 dropout 0.1",
)


def markdown(counted: list[Count]) -> str:
    """Machine instructions and sectors of a call's costliest kernel, and the call's predicted share on an H200."""
    heads = [(backend, dtype) for backend in ("cuda", "triton") for dtype in ("float32", "bfloat16")]
    lines = ["| work | " + " | ".join(f"{backend} {dtype}" for backend, dtype in heads) + " |", "|---" * 5 + "|"]
    for work in SHOWN:
        cells = []
        for backend, dtype in heads:
            call = [row for row in counted if row.key[:3] == (backend, dtype, work)]
            main = max(call, key=lambda row: row.machine)
            cells.append(f"{main.machine:.0f}, {main.sectors:.1f}, {share(call, 'H200'):.0%}")
        lines.append(f"| `{work.split()[0]}` {' '.join(work.split()[1:])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def printed(counted: list[Count]) -> str:
    """A table: a row a kernel, and the prediction in the row of a call's costliest one."""
    head = ["backend", "dtype", "work", "kernel", "launches", "PTX/el", "SASS/el", "lanes", "sectors", "conflicts"]
    lines: list[tuple[object, ...]] = [(*head, "bytes/el", "products", "H100", "H200")]
    calls: dict[tuple, list[Count]] = {}
    for row in counted:
        calls.setdefault(row.key[:3], []).append(row)
    for call in calls.values():
        costliest = max(call, key=lambda row: row.machine)
        for row in call:
            predicted = [f"{share(call, card):.0%}" for card in BANDWIDTH] if row is costliest else ["", ""]
            lines.append((*astuple(row), *predicted))
    return table(lines, right=range(4, 14))
