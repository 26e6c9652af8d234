"""Accuracy under noise and faults that training has not seen."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..data import Batch, DataSpec, MultimodalData
from ..layers import NoiseInjector
from ..models import MultimodalModel
from ..training.randomness import evaluation_seed
from .faults import FAULTS, MASKED
from .kinds import KINDS, MixedKinds
from .measures import ALL

# The name of the mean over all modalities, where each of them is degraded alone.
ONE = "one"
# The number of the noise draw; `evaluate` counts its draws from 0.
_DRAW = 1


@dataclass(frozen=True)
class Case:
    """A way to degrade modalities that training does not have.

    Attributes:
        group: the part of the table that it stands in.
        text: its name.
        kind: a kind of noise, a name in FAULTS, or MASKED.
        sigma: the level of the noise.
        together: whether all modalities are also degraded at once, and not only each alone.
        guarded: whether the model's `InputGuard` is on, as it is by default.
    """

    group: str
    text: str
    kind: str
    sigma: float = 0.0
    together: bool = False
    guarded: bool = True


LEVEL, KIND, FAULT, BARE = "beyond training", "another kind", "broken sensor", "broken sensor, guard off"
_NAMES = {"salt_pepper": "salt and pepper", "replace": "replaced by noise", "NaN": "not a number"}
_CAUGHT = ("stuck at 0", "stuck at 5", "times 1e2")
CASES = (
    *(Case(LEVEL, f"gaussian, σ = {s}", "gaussian", s, together=True) for s in (16, 24)),
    *(
        Case(KIND, f"{_NAMES.get(kind, kind)}, σ = {s}", kind, s, together=True)
        for kind in (*KINDS[1:], "replace")
        for s in (4, 8)
    ),
    *(Case(FAULT, _NAMES.get(fault, fault), fault) for fault in (*_CAUGHT, "NaN", "frozen at a sample")),
    Case(FAULT, "missing", MASKED),
    *(Case(BARE, f"{fault}, guard off", fault, guarded=False) for fault in _CAUGHT),
)


@dataclass(frozen=True)
class Unseen:
    """A case on ALL modalities, on a modality, or on ONE of them."""

    case: Case
    degraded: str

    def of(self, result: Mapping[str, Any]) -> float:
        """A run's accuracy in percent."""
        scores = result["unseen"][self.case.text]
        if self.degraded == ONE:
            return 100 * fmean(value for name, value in scores.items() if name != ALL)
        return 100 * scores[self.degraded]


@torch.no_grad()
def measure_unseen(model: MultimodalModel, data: MultimodalData, weighting: bool) -> dict[str, dict[str, float]]:
    """The accuracy on the test split by the case's text, and by what is degraded: a modality, or ALL.

    The noise is one draw, the same for every model. The oracle is told the level of gaussian, uniform, speckle, salt
    and pepper and dropout noise (of equal power, see `MixedKinds`); of a modality that is replaced or broken it is told
    the highest level of training, as it should not be used.
    """
    batch, found = data.test.__getitems__(list(range(len(data.test)))), {}
    degrade, names = _Degrade(data.spec), data.spec.modalities
    for case in CASES:
        with _guard(model, case.guarded):
            found[case.text] = {
                degraded: _score(model, degrade(batch, case, degraded), weighting)
                for degraded in ((ALL, *names) if case.together else names)
            }
    return found


def _score(model: MultimodalModel, degraded: tuple[Batch, Tensor], weighting: bool) -> float:
    batch, told = degraded
    ids = {"seed": evaluation_seed(_DRAW), "sample_ids": batch.index}
    logits = model(batch.inputs, sigma=told, present=batch.present, weighting=weighting, **ids).logits
    return float((logits.argmax(1) == batch.target).float().mean())


@contextmanager
def _guard(model: MultimodalModel, on: bool) -> Iterator[None]:
    """Switch the model's guard off for a while, unless `on`."""
    guard = model.guard
    model.guard = guard if on else None
    try:
        yield
    finally:
        model.guard = guard


class _Degrade:
    """Degrades a batch by a case; returns it and the levels (B, M) that the oracle is told."""

    def __init__(self, spec: DataSpec):
        self.spec, self.mixed = spec, MixedKinds(spec)
        self.injector = NoiseInjector([spec.noise[name] for name in spec.modalities])

    def __call__(self, batch: Batch, case: Case, degraded: str) -> tuple[Batch, Tensor]:
        names, rows = self.spec.modalities, len(batch)
        hit = torch.tensor([degraded in (ALL, name) for name in names]).expand(rows, -1)
        if case.kind == MASKED:
            return Batch(batch.inputs, batch.target, batch.index, ~hit), torch.zeros(hit.shape)
        if case.kind in FAULTS:
            changed = {name: FAULTS[case.kind](x) for name, x in batch.inputs.items()}
        else:
            changed = self._noisy(batch, case)
        inputs = {name: changed[name] if degraded in (ALL, name) else batch.inputs[name] for name in names}
        useless = case.kind in FAULTS or case.kind == "replace"
        told = hit * (self.spec.max_sigma if useless else case.sigma)
        return Batch(inputs, batch.target, batch.index, batch.present), told.float()

    def _noisy(self, batch: Batch, case: Case) -> dict[str, Tensor]:
        names = self.spec.modalities
        inputs, sigma = [batch.inputs[name] for name in names], torch.full((len(batch), len(names)), float(case.sigma))
        random = {"seed": evaluation_seed(_DRAW), "sample_ids": batch.index}
        if case.kind in ("gaussian", "replace"):
            noisy = self.injector(inputs, sigma, kind=case.kind, **random)
        else:
            noisy = self.mixed(inputs, sigma, torch.full(sigma.shape, KINDS.index(case.kind)), **random)
        return dict(zip(names, noisy, strict=True))
