"""What was predicted before any GPU was at hand, beside what was seen."""

import fnmatch
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import read

# Case (op and shape), and the works of `udml_kernels/tools/counts.csv` whose counts per element it has: forward and
# backward.
AS_COUNTED = (
    ("normal/*", "normal 64x65536", ""),
    ("uniform/*", "uniform 64x65536", ""),
    ("inject_noise/image", "inject_noise 64x3x128x128 uint8 image", ""),
    ("inject_noise/*", "inject_noise 64x3x128x128 gaussian", "inject_noise_backward gaussian"),
    ("reparameterize/features", "reparameterize 4096x512", "reparameterize_backward 4096x512"),
    ("reparameterize/map14", "reparameterize 64x512x14x14", "reparameterize_backward 64x512x14x14"),
    ("reparameterize/cremad", "reparameterize 64x512x7x7", "reparameterize_backward 64x512x7x7"),
    ("reparameterize/ks", "reparameterize 64x512x7x7", "reparameterize_backward 64x512x7x7"),
    ("reparameterize/[nt]*", "reparameterize 8x256x60x80", "reparameterize_backward 8x256x60x80"),
    ("weighted_fusion/nyud", "weighted_fusion 8x256x60x80 per location", "weighted_fusion_backward per location"),
    ("weighted_fusion/tokens", "weighted_fusion 64x512x7x7 maps", "weighted_fusion_backward maps"),
    ("weighted_fusion/*", "weighted_fusion 4096x512 features", "weighted_fusion_backward features"),
    ("modality_dropout/*", "modality_dropout 4096x512 2 modalities", "modality_dropout 4096x512 2 modalities"),
    ("evidential_fusion/*", "evidential_fusion 4096x3x34", "evidential_fusion_backward 4096x3x34"),
)
_Counts = dict[tuple[str, str, str], list[Any]]


class Shares:
    """The share of a copy's bandwidth that the counts of `counts.csv` predict, launches and latency left out."""

    def __init__(self, card: str):
        self.calls: _Counts = {}
        if not card:
            return
        try:
            from udml_kernels.tools import counts
        except Exception:  # Whatever keeps the package from being imported: the summary is written all the same.
            return
        self._share: Callable[[list[Any], str], float] = counts.share
        self.card = next((name for name in counts.BANDWIDTH if name in card), "")
        for row in counts.read() if self.card else ():
            self.calls.setdefault((row.backend, row.dtype, row.work), []).append(row)

    def of(self, work: str, backend: str) -> float | None:
        """Of a case of the catalogue on a backend; None where nothing was counted."""
        op, shape, dtype, direction, *_ = work.split("/")
        found = (labels for pattern, *labels in AS_COUNTED if fnmatch.fnmatchcase(f"{op}/{shape}", pattern))
        forward, backward = next(found, ("", ""))
        wanted = [forward, backward] if direction == "forward+backward" else [forward]
        calls = [self.calls.get((backend, dtype, label)) for label in wanted]
        counted = [call for call in calls if call]
        if len(counted) != len(wanted):
            return None
        moved = sum(call[0].bytes for call in counted)
        return moved / sum(call[0].bytes / self._share(call, self.card) for call in counted)


def _beside(out: Path) -> str:
    found = []
    for (vectors, reads, writes, blocks), rates in read.access(out).items():
        pair = rates.get(("beside", "beside")), rates.get(("striped", "striped"))
        if pair[0] and pair[1]:
            found.append((pair[1] / pair[0] - 1, f"{vectors} vectors, {reads} read, {writes} written, {blocks} blocks"))
    if not found:
        return ""
    middle = statistics.median(slower for slower, _ in found)
    ends = (f"{slower:.0%} ({what})" for slower, what in (min(found), max(found)))
    return f"slower by {' to '.join(ends)}, median {middle:.0%}"


def _sectors(out: Path) -> str:
    said = []
    for backend in ("cuda", "triton"):
        ideal = re.search(r"before the noise regression: (\d+)", read.text(out, f"2_ncu_{backend}.txt"))
        rows = read.profiled(out, backend)
        # The noise regression is the last call: its first kernel, and what follows it.
        first = next(
            (i for i, row in enumerate(rows) if re.search(r"noise_regression|_layers_", row["kernel"])), len(rows)
        )
        written = sum(row.get("lts__t_sectors_op_write.sum", 0) for row in rows[:first])
        if ideal and written:
            said.append(f"{backend} {written / int(ideal[1]):.2f} times")
    return ", ".join(said)


def _timed(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["work"], row["variant"]): row for row in read.lines(out, "times.jsonl") if "warm_us" in row}


def _ahead(out: Path) -> str:
    times, said = _timed(out), []
    for (work, variant), row in times.items():
        op, _, dtype, *_ = work.split("/")
        other = times.get((work, "triton"))
        if variant == "cuda" and other and op in ("inject_noise", "weighted_fusion") and dtype == "float32":
            said.append(f"{work.replace('/float32', '').removesuffix('/warm')} {row['warm_us'] / other['warm_us']:.2f}")
    return f"time of CUDA over Triton's: {', '.join(said)}" if said else ""


def _head_step(out: Path) -> str:
    said = [
        f"{variant}: graph {row['warm_us']:.0f} us, host {row['host_us']:.0f} us"
        for (work, variant), row in _timed(out).items()
        if work.startswith("head_step/features/") and variant in ("cuda", "triton")
    ]
    return "; ".join(said)


_PREDICTIONS: tuple[tuple[str, Callable[[Path], str]], ...] = (
    ("a thread's vectors side by side: 10 to 25 % slower than striped", _beside),
    ("sectors stored, over the ideal: cuda 2 times, triton 1 time", _sectors),
    ("Triton ahead of CUDA on float32 inject_noise and weighted_fusion", _ahead),
    ("head step at `features`: a graph about 100 us, without one 650 to 750 us of host time", _head_step),
)


def beside_what_was_seen(out: Path) -> Iterable[tuple[str, str]]:
    """(prediction, what the folder's results say)."""
    return [(prediction, seen(out) or "not measured") for prediction, seen in _PREDICTIONS]
