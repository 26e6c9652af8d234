from collections.abc import Sequence


def table(rows: Sequence[Sequence[object]], right: Sequence[int] = (), indent: str = "") -> str:
    """Rows as aligned text; the columns numbered in `right` are right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )
    return "\n".join((indent + line).rstrip() for line in lines)


def dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
