"""A case as text, small enough to read and complete enough to type in."""

from torch import Tensor

from .case import Generated

SHOWN = 20


def _words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        inside = ", ".join(map(_words, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if not isinstance(value, Tensor):
        return repr(value)
    dtype = str(value.dtype)
    if value.numel() > SHOWN:
        return f"<{dtype} {tuple(value.shape)}, strides {value.stride()}>"
    strides = "" if value.is_contiguous() else f" with strides {value.stride()}"
    # As Python numbers, so that the dtype does not affect how values are printed.
    return f"tensor({value.tolist()}, dtype={dtype}, shape={tuple(value.shape)}){strides}"


def described(case: Generated) -> str:
    lines = [f"{name}={_words(value)}," for name, value in case.inputs.items()]
    lines = [f"{case.carrier.op}(", *(f"    {line}" for line in lines), ")"]
    for name, value in case.gradients.items():
        lines.append(f"gradient that comes in for {name}: {_words(value)}")
    lines.append(f"gradients wanted of: {', '.join(case.wanted) if case.wanted and case.gradients else 'nothing'}")
    return "\n".join(lines)


def totals(rows: list[tuple[str, int, int, float]]) -> str:
    """Rows of (op, cases, mismatches, seconds of one process)."""
    lines = [f"{'op':<20}{'cases':>9}{'mismatches':>12}{'cases/s':>9}"]
    lines += [f"{op:<20}{n:>9}{bad:>12}{n / max(seconds, 1e-9):>9.0f}" for op, n, bad, seconds in rows]
    return "\n".join(lines)
