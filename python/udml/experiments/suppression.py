"""python -m udml suppression: does a modality that learns slowly get less gradient where weights fall with its noise?

Several methods are watched over the training: what each modality's encoder knows, its head, its gradient by term of the
objective, its weight and its alpha. Validation samples alone are used.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from .._flags import failed, prog
from ..data import DataError, load_data
from .comparison import flags, run, write
from .statistics import interval
from .suppression_plot import draw

_FREE = {"logvar_gradient": 1.0, "input_statistics": False}
# Label: the method and its options. Unimodal losses (γ) teach every encoder alone: suppression is looked for without.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {"gamma": 0.0}),
    "PE": ("pe", {"gamma": 0.0}),
    "UDML": ("udml", {"gamma": 0.0}),
    "UDML, α off": ("udml", {"gamma": 0.0, "dependency": False}),
    "UDML, free": ("udml", {"gamma": 0.0, **_FREE}),
    "UDML, free, α off": ("udml", {"gamma": 0.0, "dependency": False, **_FREE}),
    "UDML, 1 + w": ("udml", {"gamma": 0.0, "residual": True}),
    "UDML, α on gradients": ("udml", {"gamma": 0.0, "dependency_gradient": 1.0}),
    "oracle": ("oracle", {"gamma": 0.0}),
    "static, γ = 0.3": ("static", {"gamma": 0.3}),
    "UDML, γ = 0.3": ("udml", {}),
    "authors preset": ("udml", {"preset": "authors"}),
}


def table(results: Mapping[str, Sequence[dict[str, Any]]], slow: str) -> list[dict[str, str]]:
    """A row for each method: means over the seeds, the gradients and weights over the last quarter of the epochs."""
    rows = []
    for label, runs in results.items():
        row = {"method": label}
        for key in ("clean", "mix", *(name for name in runs[0]["final"] if name.startswith("probe"))):
            row[key] = f"{100 * interval([run['final'][key] for run in runs]).mean:.1f}"
        for term in ("task", "unimodal", "kl", "noise"):
            row[f"gradient of {term}, {slow}"] = _late(runs, f"gradient {term} {slow}")
        row |= {f"weight {slow}": _late(runs, f"weight_{slow}"), f"α {slow}": _late(runs, f"alpha_{slow}")}
        rows.append(row)
    return rows


def _late(runs: Sequence[dict[str, Any]], key: str) -> str:
    values = [row[key] for run in runs for row in run["epochs"][-max(1, len(run["epochs"]) // 4) :] if key in row]
    return f"{sum(values) / len(values):.3g}" if values else "–"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a run failed; 2 for data that cannot be read."""
    parser = argparse.ArgumentParser(prog=prog("suppression"), description=__doc__.partition("\n")[2].strip())
    flags(parser, data="hog", regime="sgd", seeds=5, fewest=1, out="suppression")
    arguments = parser.parse_args(argv)
    try:
        slow = load_data(arguments.data).spec.modalities[-1]
    except DataError as error:
        return failed("suppression", error)
    name = f"{arguments.data}-{arguments.regime}"
    by_seed, failures = run("suppression", METHODS, arguments, name)
    results = {label: list(runs.values()) for label, runs in by_seed.items()}
    draw(results, slow, arguments.out / f"{name}.png")
    write(table(results, slow), arguments.out / name)
    return 1 if failures else 0
