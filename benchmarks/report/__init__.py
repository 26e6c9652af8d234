"""The report of a run: one self-contained HTML page, and its plots as PNG for the README."""

import argparse
import sys
from pathlib import Path

from ..record import Result

HELP = "report.html and its plots as PNG from a results.json"


def write_report(results_path: str | Path, out_dir: str | Path) -> None:
    """Write report.html, ratios.png, roofline.png, scaling.png and memory.png into a folder, which is made if needed.

    A picture without measurements is not written, and removed if an earlier run left it.

    Raises:
        ImportError: without matplotlib, jinja2 or pillow.
        OSError: if results_path cannot be read or out_dir not written.
        ValueError: if results_path is not a results.json.
    """
    # Only this command imports matplotlib and jinja2, so that the others work without them.
    from .page import render
    from .pictures import write_pictures

    result, folder = Result.load(results_path), Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(render(result), encoding="utf-8")
    write_pictures(result, folder)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", metavar="results.json")
    parser.add_argument("--out", metavar="FOLDER", help="where to write (default: beside the results)")


def run(options: argparse.Namespace) -> int:
    """Returns: 0; 2 for a file that is not a results.json."""
    folder = Path(options.out or Path(options.results).parent)
    try:
        write_report(options.results, folder)
    except (OSError, ValueError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {folder / 'report.html'}")
    return 0
