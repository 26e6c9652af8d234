"""The speed goals, for two AVX-512 cores in float32, and whether a result meets them."""

from collections.abc import Iterator

from .record import Goal, Measured, Result

_FORWARD, _BOTH = "forward", "forward+backward"
# op, shape, direction, kind of the baseline, required speed-up.
_RATIOS = (
    ("reparameterize", "map14", _FORWARD, "eager", 45.0),
    ("reparameterize", "map14", _BOTH, "eager", 35.0),
    ("reparameterize", "map14, pooled", _FORWARD, "eager", 20.0),
    ("reparameterize", "map14, pooled", _BOTH, "eager", 12.0),
    ("normal", "map14", _FORWARD, "eager", 10.0),
    ("normal", "tokens", _FORWARD, "eager", 10.0),
    ("head_step", "cremad", _BOTH, "eager", 25.0),
    ("head_step", "cremad", _BOTH, "compile", 10.0),
    ("head_step", "features", _BOTH, "eager", 6.0),
    ("head_step", "features", _BOTH, "compile", 2.0),
)
# op, shape, direction: upper limit of the time, as a multiple of the time that a copy of the bytes takes.
_COPIES = (("reparameterize", "map14", _FORWARD, 2.2),)
# op, shape, direction of memory-bound works: speed-up of bfloat16 over float32.
_HALVES = tuple((op, "large", d, 1.3) for op in ("weighted_fusion", "modality_dropout") for d in (_FORWARD, _BOTH))
# op, shape, direction: speed-up of two threads over one.
_THREADS = (
    ("reparameterize", "cremad", _FORWARD, 1.8),
    ("reparameterize", "cremad", _BOTH, 1.8),
    ("reparameterize", "tokens", _FORWARD, 1.8),
    ("inject_noise", "cremad", _FORWARD, 1.8),
    ("inject_noise", "tokens", _FORWARD, 1.8),
    ("normal", "tokens", _FORWARD, 1.8),
    ("head_step", "cremad", _BOTH, 1.8),
)
_BASELINES = {"eager": "eager", "compile": "torch.compile"}


def evaluate(result: Result) -> list[Goal]:
    """All goals, on the CPU, for which they were set; none for other devices."""
    if any(work.device != "cpu" for work in result.works):
        return []
    return list(_goals(result))


def _goals(result: Result) -> Iterator[Goal]:
    for op, shape, direction, kind, asked in _RATIOS:
        work = _find(result, op, shape, direction)
        against = {"normal": "torch.randn"}.get(op, _BASELINES[kind])
        reached = work.ratio(kind) if work else None
        yield _at_least(f"{op} {shape} {direction} against {against}", asked, reached)
    for op, shape, direction, asked in _COPIES:
        work = _find(result, op, shape, direction)
        share = result.copy_share(work) if work else None
        reached = 1 / share if share else None
        name = f"{op} {shape} {direction}, time of a copy of its bytes"
        yield Goal(name, asked, reached, "x", reached is not None and reached <= asked, most=True)
    for op, shape, direction, asked in _HALVES:
        full, half = (_find(result, op, shape, direction, dtype) for dtype in ("float32", "bfloat16"))
        yield _at_least(f"{op} {shape} {direction}, bfloat16 against float32", asked, _speedup(full, half))
    for op, shape, direction, asked in _THREADS:
        one, two = (_find(result, op, shape, direction, threads=n) for n in (1, 2))
        yield _at_least(f"{op} {shape} {direction}, two threads against one", asked, _speedup(one, two))


def _find(
    result: Result, op: str, shape: str, direction: str, dtype: str = "float32", threads: int | None = None
) -> Measured | None:
    """The work from a warm cache, if it was timed; with the most threads of the run where no number is given."""
    found = [
        work
        for work in result.works
        if (work.op, work.shape, work.direction, work.dtype, work.cache) == (op, shape, direction, dtype, "warm")
        and work.sweep is None
        and "fused" in work.variants
        and threads in (None, work.threads)
    ]
    return max(found, key=lambda work: work.threads, default=None)


def _speedup(slow: Measured | None, fast: Measured | None) -> float | None:
    return slow.variants["fused"].median / fast.variants["fused"].median if slow and fast else None


def _at_least(name: str, asked: float, reached: float | None) -> Goal:
    return Goal(name, asked, reached, "x", reached is not None and reached >= asked)
