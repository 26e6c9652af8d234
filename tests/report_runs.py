"""Runs of the benchmark suite made up for the tests of its report: one with everything, one with everything missing."""

import math

from benchmarks.record import Goal, Measured, Overhead, Result, Slope, Sweep, Variant

ODD = "a|b $x^2$ <c>"
SHAPES = {"cremad": 3_400_000, "nyud": 9_800_000, "features": 65_536}
# Variant -> (kind, times the fused one's time).
COSTS = {
    "fused": ("fused", 1.0),
    "eager": ("eager", 23.0),
    "compile": ("compile", 11.0),
    "reference": ("reference", 160.0),
}
DTYPES = {"float32": 1.0, "bfloat16": 0.7}


def variant(kind: str, seconds: float, extra: int | None = None) -> Variant:
    return Variant(kind, seconds, 0.95 * seconds, 1.1 * seconds, rounds=40, calls=3, peak_extra_bytes=extra)


def work(op: str, shape: str = "cremad", elements: int = 3_400_000, **others) -> Measured:
    """A work whose fused variant takes 0.4 ns an element and 3 µs."""
    fields = {"dtype": "float32", "direction": "forward", "cache": "warm", "threads": 2, "device": "cpu"} | others
    sweep = fields.get("sweep")
    place = f"sweep/{op}/{sweep.axis}/{sweep.value}" if sweep else f"{op}/{shape}"
    made = Measured(
        id=f"{place}/{fields['dtype']}/{fields['direction']}/{fields['cache']}",
        **{"op": op, "shape": shape, "dims": f"64x{elements // 64}", "elements": elements, "bytes": 12 * elements}
        | fields,
    )
    if not made.variants and not made.wrong:
        base = (4e-10 * elements * DTYPES[made.dtype] + 3e-6) * (2.2 if "backward" in made.direction else 1)
        base *= 1.6 if made.cache == "cold" else 1
        shift = 0.4 + 0.6 * math.log10(elements) / 7
        for name, (kind, times) in COSTS.items():
            extra = int(elements * (4 if kind == "fused" else 13))
            made.variants[name] = variant(kind, base * (1 if kind == "fused" else times * shift), extra)
    return made


def full() -> Result:
    """Every op and shape, in both dtypes, directions and cache states; sweeps; goals met and not."""
    works = [
        work(op, shape, elements, dtype=dtype, direction=direction, cache=cache)
        for op in ("reparameterize", "weighted_fusion", "head_step")
        for shape, elements in SHAPES.items()
        for dtype in DTYPES
        for direction in ("forward", "forward+backward")
        for cache in ("warm", "cold")
    ]
    slow = work("noise_regression", "features", SHAPES["features"], direction="forward+backward")
    slow.variants["compile"] = variant("compile", 0.8 * slow.variants["fused"].median)
    random = work("normal", "tokens", 100_000_000, direction="forward")
    random.variants = {
        "fused": variant("fused", 0.053),
        "eager": variant("eager", 0.51),
        "NumPy SFC64": variant("library", 0.85),
    }
    axes = {"B": [16, 64, 256, 1024], "M": [1, 2, 4, 8, 16], "threads": [1, 2], "dtype": list(DTYPES)}
    points = [
        work(
            "reparameterize",
            "sweep",
            200_000 * (value if axis in "BM" else 64),
            sweep=Sweep("reparameterize", axis, value),
            **({axis: value} if axis in ("threads", "dtype") else {}),
        )
        for axis, values in axes.items()
        for value in values
    ]
    for point in points[-len(DTYPES) - 2 : -len(DTYPES)]:
        for v in point.variants.values():
            v.median, v.p20, v.p80 = (1.85 * t / point.threads for t in (v.median, v.p20, v.p80))
    return Result(
        environment={
            "commit": "d6fae01",
            "date": "2026-11-25 22:33 UTC",
            "processor": "AMD EPYC (Zen 4), 2 processors",
            "isa": "avx512",
            "threads": "2",
            "torch": "2.13.0+cpu",
            "compiler": "g++ 12.2",
            "python": "3.11.7",
        },
        copy_gb_s={"1": 18.2, "2": 36.9},
        flops_g={"1": 110.0, "2": 214.0},
        works=[*works, slow, random, *points],
        overhead=[
            Overhead(op, direction, name, seconds * (1 + ("back" in direction)))
            for op in ("reparameterize", "weighted_fusion")
            for direction in ("forward", "forward+backward")
            for name, seconds in (("fused", 1.9e-5), ("eager", 6.4e-5), ("compile", 4.1e-5))
        ],
        goals=[
            Goal("reparameterize forward against eager", 45, 23.0, "x", met=False),
            Goal("reparameterize forward against a copy", 2.2, 1.9, "x", met=True, most=True),
            Goal("training step", 3, None, "x", met=False),
        ],
        slopes=[Slope("reparameterize", axis, name, 0.99) for axis in "BM" for name in COSTS],
    )


def awkward() -> Result:
    """What a run may lack, and names that break a table."""
    bare = work("bare")
    bare.variants = {"fused": variant("fused", 1e-3)}
    wrong = work("broken", wrong=[f"fused, result 0: error 1e9 {ODD}"])
    odd = work(ODD, ODD)
    odd.variants[ODD] = variant("library", 1e-3)
    empty = work("empty")
    empty.variants = {}
    gpu = work("gpu", threads=7, device="cuda")
    gpu.variants["triton"] = Variant("fused", 1e-3, 1e-3, 1e-3, 9, 1, launches=5, device_seconds=4e-5)
    return Result(
        environment={"processor": ODD, ODD: ""},
        copy_gb_s={},
        works=[bare, wrong, odd, empty, gpu],
        overhead=[Overhead(ODD, "forward", ODD, 1e-5)],
        goals=[Goal(ODD, 2, None, "x", met=False)],
    )


RUNS = {"full": full, "awkward": awkward, "nothing": lambda: Result({}, {})}
