"""The summary of `python -m benchmarks gpu`, and what is kept of its results."""

import json
import re

import pytest

from benchmarks.gpu import keep, ncu_case, predictions, summary
from benchmarks.gpu.plan import METRICS, parts
from udml_kernels.tools import counts


def timed(work: str, variant: str, warm: float, host: float = 50.0, **other) -> dict:
    row = {"work": f"{work}/warm", "variant": variant, "bytes": 10**9, "host_us": host, "graph": True, "warm_us": warm}
    return row | {"cold_us": warm + 9, "percent_of_copy": 87.5, "cold_percent": 80.0, "kernels": [["k", warm]]} | other


def ncu(*launches: tuple[str, int]) -> str:
    """As ncu prints it, with the program's own output in between."""
    head = '"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"'
    values = [("ns", "1,234,567"), ("%", "81.5"), None, ("%", "40"), ("%", "50")]
    lines = ["==PROF== Connected", head]
    for i, (kernel, sectors) in enumerate(launches):
        for metric, value in zip(METRICS, values, strict=True):
            unit, number = value or ("sector", f"{sectors:,}")
            lines.append(f'"{i}","7","{kernel}","{metric}","{unit}","{number}"')
        lines.insert(1, f"{ncu_case.IDEAL} 2000") if i == 0 else None
    return "\n".join(lines) + "\n"


@pytest.fixture
def canned(tmp_path):
    """What a run would have left behind."""
    access = [
        f"4 vectors, load {a}, store {a}, 1 read 1 written, blocks/SM {blocks}: 0.500 ms {rate} GB/s"
        for blocks, a, rate in ((8, "striped", 4400), (8, "beside", 4000), (4, "striped", 4400), (4, "beside", 3520))
    ]
    rows = [
        {"card": "NVIDIA H200", "torch": "2.11.0", "copy_gb_s": 4300.0, "one_launch_us": 2.5},
        timed("reparameterize/map14/float32/forward+backward", "cuda", 95.0),
        timed("inject_noise/nyud/float32/forward", "cuda", 120.0),
        timed("inject_noise/nyud/float32/forward", "triton", 100.0),
        timed("head_step/features/float32/forward+backward", "cuda", 104.0, 700.0),
        {"work": "normal/tokens/float32/forward/warm", "variant": "triton", "bytes": 1, "error": "RuntimeError: no"},
    ]
    said = [
        (1, "card", 0, "name, driver\nNVIDIA H200, 580.159.03, 143771 MiB\n"),
        (1, "facts", 0, '{"card": "NVIDIA H200", "directory": "nvidia-h200", "torch": "2.11.0", "triton": "3.6.0"}\n'),
        (1, "access", 0, "\n".join(access)),
        (1, "conformance_cuda", 1, "..F\n1 failed, 3999 passed in 100.00s (0:01:40)\n"),
        (
            2,
            "ncu_cuda",
            0,
            ncu(("void udml::a_kernel<float>(int)", 4000), ("udml::noise_regression_sums_kernel()", 10**6)),
        ),
        (3, "memcheck", 9, "20 cases\n========= ERROR SUMMARY: 2 errors\n"),
    ]
    for part, name, _, output in said:
        (tmp_path / f"{part}_{name}.txt").write_text(output)
    ends = [{"part": part, "name": name, "rc": rc, "seconds": 1.25, "why": ""} for part, name, rc, _ in said]
    ends.append({"part": 2, "name": "times", "rc": None, "seconds": 330.0, "why": "timed out after 330 s"})
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ends))
    # The last line was cut short.
    (tmp_path / "times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"work": "cu')
    return tmp_path


def test_the_summary(canned):
    text = summary.write(canned, parts(canned))
    assert (canned / "summary.md").read_text() == text
    for line in (
        "# NVIDIA H200",
        "nvidia-smi: NVIDIA H200, 580.159.03, 143771 MiB",
        "torch 2.11.0, triton 3.6.0",
        "A copy moves 4300 GB/s, reads and writes both counted; a graph of one small kernel takes 2.5 us.",
        "| 1 does it run | conformance_cuda | FAILED, exit code 1 | 1.2 | 1 failed, 3999 passed |",
        "| 2 how fast | times | timed out after 330 s | 330.0 |  |",
        "| 3 Triton and memory | memcheck | FAILED, exit code 9 | 1.2 | ERROR SUMMARY: 2 errors, 20 cases |",
        "| 4 compile and a step | compile | not run |  |  |",
        "| cuda | a_kernel | 1235 | 81.5 | 4000 | 40.0 | 50.0 |",
    ):
        assert line in text.splitlines(), line
    # The predicted share, between the measured ones and the host's time, is that of the recorded counts.
    for row in (
        r"inject_noise/nyud/float32/forward \| triton \| 100 \| 109 \| 87.5 \| 80.0 \| \d.* \| 50.0 \| 1 \|  \|",
        r"normal/tokens/float32/forward \| triton \|  \|  \|  \|  \| \d.* \|  \|  \| RuntimeError: no \|",
    ):
        assert re.search(rf"^\| {row}$", text, re.M), row
    seen = dict(predictions.beside_what_was_seen(canned))
    assert list(seen.values()) == [
        "slower by 10% (4 vectors, 1 read, 1 written, 8 blocks) to 25% (4 vectors, 1 read, 1 written, 4 blocks), "
        "median 18%",
        "cuda 2.00 times",
        "time of CUDA over Triton's: inject_noise/nyud/forward 1.20",
        "cuda: graph 104 us, host 700 us",
    ]


def test_the_summary_of_nothing(tmp_path):
    steps = sum(len(part.steps) for part in parts(tmp_path).values())
    text = summary.write(tmp_path, parts(tmp_path))
    assert text.count("not run") == steps and text.count("not measured") == 5


def test_predicted_shares_are_those_of_the_counts():
    shares = predictions.Shares("NVIDIA H200")
    call = [r for r in counts.read() if r.key[:3] == ("cuda", "float32", "reparameterize 64x512x14x14")]
    assert shares.of("reparameterize/map14/float32/forward/warm", "cuda") == pytest.approx(counts.share(call, "H200"))
    both = shares.of("reparameterize/map14/float32/forward+backward/warm", "cuda")
    assert both is not None and 0 < both < 1
    assert shares.of("reparameterize/map14/float32/forward/warm", "eager") is None
    assert predictions.Shares("some other card").of("reparameterize/map14/float32/forward/warm", "cuda") is None
    labels = {r.work for r in counts.read()}
    assert {label for _, *both in predictions.AS_COUNTED for label in both if label} <= labels


def test_results_are_kept_small(canned, tmp_path_factory):
    results, packed = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("packed") / "part.tar.gz"
    (canned / "1_gpu_tests.txt").write_text("x" * 99 + "\n" + "a line of a long output\n" * 40_000 + "the end\n")
    (canned / "picture.png").write_bytes(b"\x89PNG")
    keep.pack(canned, packed)
    more = tmp_path_factory.mktemp("more")
    (more / "steps.jsonl").write_text('{"part": 4, "name": "compile", "rc": 0, "seconds": 5.0, "why": ""}\n')
    target = keep.keep([packed, more], results)
    assert target == results / "nvidia-h200" / "gpu"
    assert not (target / "picture.png").exists()
    assert all(file.stat().st_size <= keep.MOST for file in target.iterdir())
    long = (target / "1_gpu_tests.txt").read_text()
    assert long.startswith("x" * 99) and long.endswith("the end\n") and "lines left out" in long
    text = (target / "summary.md").read_text()
    assert "| 4 compile and a step | compile | passed | 5.0 |  |" in text and "3999 passed" in text


def test_results_without_a_card_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep: expected the facts of part 1 in"):
        keep.keep([tmp_path], tmp_path / "results")
