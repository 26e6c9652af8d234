"""Write all files of a result."""

from collections.abc import Iterator
from pathlib import Path

from .record import Result
from .tables import goals_table, slopes_table


def write(result: Result, directory: Path) -> Iterator[str]:
    """Write results.json, results.csv and the report; yields the lines to print."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "results.json"
    result.save(path)
    result.save_csv(directory / "results.csv")
    yield goals_table(result)
    yield slopes_table(result)
    try:
        from .report import write_report
    except ImportError as missing:
        yield f"no report: {missing}"
        return
    write_report(path, directory)
