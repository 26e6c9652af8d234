"""python -m udml broken-sensor: accuracy with one modality broken, compared with that modality masked."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._flags import at_least, failed, folder, prog
from ..data import Batch, DataError, DataSpec, MultimodalData, load_data
from ..models import METHODS
from ..training.config import TrainConfig
from ..training.fit import train
from ..training.folder import write_text
from ..training.forward import NoisyPass
from .faults import FAULTS, MASKED
from .plan import DATA
from .statistics import interval
from .tables import Rows, markdown, write_table

COMMAND = "python -m udml broken-sensor"
# The largest allowed loss of accuracy, in points, compared with the modality masked.
ALLOWED = 2.0
# The share of training samples whose first modality is broken.
SHARE = 0.3
TRAINING_FAULTS = ("times 1e6", "stuck at 5", "NaN")


class BrokenPass(NoisyPass):
    """A `NoisyPass` that breaks the first modality of some samples, or masks it."""

    def __init__(self, spec: DataSpec, fault: str):
        super().__init__(spec)
        self.fault = fault

    def __call__(self, model: nn.Module, batch: Batch, sigma: Tensor | None, **options) -> Any:
        # Chosen by the sample's index alone, so that the same samples are broken in every epoch.
        broken = batch.index % 10 < 10 * SHARE
        first, present = self.names[0], torch.ones(len(batch), len(self.names), dtype=torch.bool)
        if self.fault == MASKED:
            present[:, 0] = ~broken
            return super().__call__(model, Batch(batch.inputs, batch.target, batch.index, present), sigma, **options)
        x = batch.inputs[first]
        x = torch.where(broken.reshape(-1, *[1] * (x.dim() - 1)), FAULTS[self.fault](x), x)
        return super().__call__(
            model, Batch({**batch.inputs, first: x}, batch.target, batch.index, batch.present), sigma, **options
        )


@torch.no_grad()
def answer(model: nn.Module, data: MultimodalData, modality: str | None, fault: str) -> tuple[float, bool]:
    """Accuracy in percent on clean test samples, one modality broken or masked, and whether all logits are finite."""
    batch = data.test.__getitems__(list(range(len(data.test))))
    names = data.spec.modalities
    inputs, present = dict(batch.inputs), torch.ones(len(batch), len(names), dtype=torch.bool)
    if fault == MASKED:
        present[:, names.index(modality)] = False
    elif modality is not None:
        inputs[modality] = FAULTS[fault](inputs[modality])
    logits = model(inputs, sigma=torch.zeros(len(batch), len(names)), present=present).logits
    return 100 * float((logits.argmax(1) == batch.target).float().mean()), bool(logits.isfinite().all())


def run(data: str, methods: Sequence[str], seeds: int, epochs: int, told: Callable[[str], None] = print) -> Rows:
    """One row for each method and fault, in evaluation (of a model trained on healthy data) and in training.

    Returns:
        "when", "method", "fault"; "accuracy" and "masked", percent, means over the seeds and, in evaluation, over the
        broken modality; "difference", in points, with "low" and "high", its 95% interval over seeds; and "finite".
    """
    loaded, lines = load_data(data), []
    for method in methods:

        def trained(seed: int, fault: str | None, method: str = method) -> nn.Module:
            config = TrainConfig(data=data, method=method, seed=seed, epochs=epochs, device="cpu")
            broken = None if fault is None else BrokenPass(loaded.spec, fault)
            return train(config, loaded, forward_pass=broken, progress=False).model

        models = [trained(seed, None) for seed in range(seeds)]
        lines += [_evaluated(models, loaded, method, fault) for fault in FAULTS]
        masked = [answer(trained(seed, MASKED), loaded, None, "") for seed in range(seeds)]
        for fault in TRAINING_FAULTS:
            broken = [answer(trained(seed, fault), loaded, None, "") for seed in range(seeds)]
            lines.append(_line("training", method, fault, broken, masked))
        told(f"{method}: worst difference {min(line['difference'] for line in lines if line['method'] == method):.1f}")
    return lines


def _evaluated(models: Sequence[nn.Module], data: MultimodalData, method: str, fault: str) -> dict:
    """The mean over the modalities, for each seed."""

    def of(model: nn.Module, what: str) -> tuple[float, bool]:
        answers = [answer(model, data, name, what) for name in data.spec.modalities]
        return sum(a for a, _ in answers) / len(answers), all(finite for _, finite in answers)

    return _line("evaluation", method, fault, [of(m, fault) for m in models], [of(m, MASKED) for m in models])


def _line(when: str, method: str, fault: str, broken: Sequence[tuple], masked: Sequence[tuple]) -> dict:
    difference = interval([a - b for (a, _), (b, _) in zip(broken, masked, strict=True)])
    return {
        "when": when,
        "method": method,
        "fault": fault,
        "accuracy": sum(a for a, _ in broken) / len(broken),
        "masked": sum(a for a, _ in masked) / len(masked),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "finite": all(finite for _, finite in broken),
    }


def report(lines: Rows, data: str, seeds: int, epochs: int) -> str:
    """The differences, as one table for evaluation and one for training."""
    finite = "yes" if all(line["finite"] for line in lines) else "**no**"
    parts = [
        f"""# A broken sensor on {data}

`{COMMAND} --data {data}`: {seeds} seeds, {epochs} epochs, every method's defaults. Points of accuracy on
clean test samples above the same with the broken modality masked as missing; **bold** where that is below -{ALLOWED:g}.
`broken_sensor.csv` has the accuracies and intervals. All logits are finite: {finite}.
"""
    ]
    titles = {
        "evaluation": "Broken in evaluation, after healthy training; the mean over the modalities, each broken alone",
        "training": f"Broken in training, the first modality of {SHARE:.0%} of the samples; all healthy in evaluation",
    }
    for when, title in titles.items():
        cells: dict[str, dict[str, str]] = {}
        for line in (line for line in lines if line["when"] == when):
            cell = f"{line['difference']:+.1f}"
            cells.setdefault(line["fault"], {})[line["method"]] = (
                f"**{cell}**" if line["difference"] < -ALLOWED else cell
            )
        methods = list(dict.fromkeys(line["method"] for line in lines))
        masked = {line["method"]: f"{line['masked']:.1f}" for line in lines if line["when"] == when}
        body = [["masked, percent", *(masked[m] for m in methods)]]
        body += [[fault, *(row.get(m, "") for m in methods)] for fault, row in cells.items()]
        parts.append(f"{title}:\n\n{markdown(['', *methods], body)}")
    return "\n".join(parts)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. Raises SystemExit with 2 after a message if it is not valid."""
    parser = argparse.ArgumentParser(
        prog=prog("broken-sensor"), description="Break one modality, and see what the others still answer."
    )
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--seeds", type=at_least(2), default=3, help="runs of a method and fault, at least 2 (default: 3)"
    )
    parser.add_argument("--epochs", type=at_least(3), default=5, help="epochs of each run, at least 3 (default: 5)")
    parser.add_argument("--out", type=folder, default=None, help="folder of the table (default: reproduce/DATA)")
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out or Path("reproduce") / arguments.data
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Train, break, write broken_sensor.csv and broken_sensor.md.

    Returns:
        The exit code: 0; 1 if a logit was not finite; 2 for data that cannot be read.
    """
    arguments = parse(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lines = run(arguments.data, arguments.methods, arguments.seeds, arguments.epochs)
    except DataError as error:
        return failed("broken-sensor", error)
    finally:
        torch.set_num_threads(threads)
    write_table(arguments.out / "broken_sensor.csv", lines)
    write_text(arguments.out / "broken_sensor.md", report(lines, arguments.data, arguments.seeds, arguments.epochs))
    return 0 if all(line["finite"] for line in lines) else 1
