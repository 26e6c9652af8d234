"""The description of an op: what the tests, `check`, `aot` and the benchmarks need in order to run it.

A row of its tables names arguments of `sample`: its options. `layout`, `grads`, `through`, `wrt`, `special` and so on
are the case's own (see `cases.Case`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .aot_works import KernelWork, Maker
from .choices import Choices
from .draw import LAYOUTS
from .values import Values
from .works import Work

Row = dict[str, Any]

# Sizes around every plausible block and vector width.
SIZES = (1, 3, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025)
# Sizes that vectors of 16 bytes divide, but not a GPU thread's 16 elements.
VECTORS = (8, 24, 520, 4104)
# Of the rows that `layouts` makes, those that `check` runs.
CHECKED_LAYOUTS = tuple(f"layout {name}" for name in ("contiguous", "transposed", "sliced", "expanded"))


@dataclass(frozen=True, eq=False)
class OpInfo:
    """An op.

    Attributes:
        name: the name of its public function and of its reference.
        outputs: the names of its outputs, in their order.
        sample: (a `Draw`, **options) -> the public function's keyword arguments.
        rows: the conformance suite's cases, by name.
        generate: random choices -> the public function's keyword arguments, for generated cases.
        checked: patterns of the names of the rows that `python -m udml_kernels check` runs.
        file: the name of the files that hold its kernels; several ops may share one.
        aot: makes the works that `python -m udml_kernels aot` compiles.
        wide: the outputs that have the arithmetic's dtype, float32 or float64, whatever the inputs' dtype is.
        laid_out: outputs by name, and the inputs that decide about their layout: an output has the channels last in
            memory if all of these have, and is contiguous otherwise. Other outputs are always contiguous.
        plain: the row that test_faults.py runs with a planted fault.
        small: options with few elements, for torch's transforms.
        compiled: two options that differ in sizes alone, so that compiled code serves both.
        gradchecked: options by name, for finite differences.
        crowded: options with as many modalities, classes and terms as the kernels' buffers hold.
        by_sample: options, and the inputs that have one row per sample, if a sample's results depend on it alone.
        tiny: makes a benchmark's work so small that its kernel's time is negligible.
        base: makes the arguments of a call, of which `forms` and the tests of wrong arguments replace some.
        forms: name of an argument and its form -> a function of the call's number, which returns what replaces the
            arguments of `base`; for compiled code that meets changing values.
    """

    name: str
    outputs: tuple[str, ...]
    sample: Callable[..., dict[str, Any]]
    rows: dict[str, Row]
    generate: Callable[[Choices, Values], dict[str, Any]]
    checked: tuple[str, ...]
    file: str
    aot: Callable[[Maker], Iterator[KernelWork]]
    small: Row
    compiled: tuple[Row, Row]
    crowded: tuple[Row, ...]
    gradchecked: dict[str, Row]
    wide: tuple[str, ...] = ()
    laid_out: dict[str, tuple[str, ...]] = field(default_factory=dict)
    plain: str = "layout contiguous"
    by_sample: tuple[Row, tuple[str, ...]] | None = None
    tiny: Callable[..., Work] | None = None
    base: Callable[[], Row] | None = None
    forms: dict[str, Callable[[int], Row]] = field(default_factory=dict)

    @property
    def differentiable(self) -> bool:
        return bool(self.gradchecked)


def layouts(**row: Any) -> dict[str, Row]:
    """The row in every memory layout, and with incoming gradients in some."""
    both = {f"layout {name}": dict(row, layout=name, grads=name) for name in LAYOUTS}
    return both | {f"{name} gradients": dict(row, grads=name) for name in ("transposed", "sliced", "expanded")}


def each(word: str, values: Iterable[Any], argument: str, **row: Any) -> dict[str, Row]:
    """A row for each value of an argument."""
    return {f"{word} {value}".replace(" ()", " scalar"): {**row, argument: value} for value in values}
