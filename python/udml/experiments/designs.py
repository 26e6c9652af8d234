"""python -m udml designs: how the estimator may learn without pulling the encoders off their task.

Each design is trained with the package's defaults, untuned, and measured on validation samples. `--split test` shows
how the chosen one does on samples that had no part in the choice.
"""

import argparse
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .._flags import failed, prog
from ..data import DataError, load_data
from ..training.evaluate import MIX
from .comparison import Results, flags, run, write
from .statistics import Interval, interval, paired
from .tables import difference

STATIC = "static"
# Label: the method, and its options that are not the package's defaults of before this comparison.
DESIGNS: dict[str, tuple[str, dict[str, Any]]] = {
    STATIC: ("static", {"gamma": 0.3}),
    "static, clean": ("static-clean", {"gamma": 0.3}),
    "free": ("udml", {"logvar_gradient": 1.0, "input_statistics": False}),
    "std detached": ("udml", {"logvar_gradient": 1.0, "input_statistics": False, "detach": True}),
    "loss by variance": ("udml", {"logvar_gradient": 1.0, "input_statistics": False, "lam": 0.3 / 12}),
    "gradient 0.1": ("udml", {"logvar_gradient": 0.1, "input_statistics": False}),
    "features detached": ("udml", {"logvar_gradient": 0.0, "input_statistics": False}),
    "detached, hidden": ("udml", {"logvar_gradient": 0.0, "input_statistics": False, "logvar_hidden": 128}),
    "detached, sizes": ("udml", {"logvar_gradient": 0.0, "input_statistics": True}),
    "detached, sizes, hidden": ("udml", {"logvar_gradient": 0.0, "input_statistics": True, "logvar_hidden": 128}),
    "oracle": ("oracle", {"gamma": 0.3}),
    "static, γ = 0": ("static", {"gamma": 0.0}),
    "PE": ("pe", {"gamma": 0.3}),
}


def table(results: Results, names: Sequence[str]) -> list[dict[str, str]]:
    """A row for each design: means, and on clean data and the mix the paired difference from static."""
    rows = []
    for label, runs in results.items():
        row = {"design": label}
        for key in ("clean", MIX):
            row[key] = f"{100 * fmean(run[key] for run in runs.values()):.1f}"
            row[f"{key} - static"] = "" if label == STATIC else difference(_against_static(results, label, key))
        for key in ("all at 4", "all at 8"):
            row[key] = f"{100 * fmean(run[key] for run in runs.values()):.1f}"
        for key, digits in (("spearman", 3), ("probe", 1)):
            for name in names:
                values = [run[f"{key} {name}"] for run in runs.values() if f"{key} {name}" in run]
                scale = 100 if key == "probe" else 1
                row[f"{key} {name}"] = f"{scale * interval(values).mean:.{digits}f}" if values else ""
        rows.append(row)
    return rows


def _against_static(results: Results, label: str, key: str) -> Interval:
    own, static = ({seed: 100 * run[key] for seed, run in results[name].items()} for name in (label, STATIC))
    return paired(own, static)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a run failed; 2 for data that cannot be read."""
    parser = argparse.ArgumentParser(prog=prog("designs"), description=__doc__.partition("\n")[2].strip())
    flags(parser, data=None, regime="adamw", seeds=5, fewest=2, out="designs")
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="(default: validation)")
    parser.add_argument("--only", nargs="+", choices=DESIGNS, metavar="DESIGN", help="static and these designs")
    arguments = parser.parse_args(argv)
    try:
        names = load_data(arguments.data).spec.modalities
    except DataError as error:
        return failed("designs", error)
    chosen = {n: design for n, design in DESIGNS.items() if n == STATIC or n in (arguments.only or DESIGNS)}
    suffix = "-test" if arguments.split == "test" else ""
    name = f"{arguments.data}-{arguments.regime}{suffix}"
    results, failures = run(f"design{suffix}", chosen, arguments, name)
    write(table(results, names), arguments.out / name)
    return 1 if failures else 0
