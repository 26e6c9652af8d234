"""Recognise the kind of noise: a UDML trained on several kinds, and a classifier on its embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import udml_kernels
from udml_kernels.streams import Stream

from ..data import Batch, DataSpec, MultimodalData
from ..data.sets import Split
from ..layers import NoiseInjector, NoiseTypeClassifier
from ..training.config import TrainConfig
from ..training.fit import train
from ..training.forward import NoisyPass
from ..training.randomness import evaluation_seed, mixed_sigma

KINDS = ("gaussian", "uniform", "speckle", "salt_pepper", "dropout")
CLASSES = ("clean", *KINDS)
# The share of the first kind in the noise's power; training has only pure kinds.
SHARES = (0.9, 0.75, 0.6)
LEVELS = (1, 2, 4, 8, 12)
# The values that salt and pepper set elements to, in standard deviations of the clean input.
EXTREME = 8.0
# The level at which dropout would drop all elements.
ALL_DROPPED = 16.0
_CODES = torch.tensor([udml_kernels.KINDS.index(kind) for kind in KINDS])
# Draws from 0 on test the classifier, draws from this number on train it.
_FIRST_TRAINING_DRAW = 1000
# Epochs and batch size of the classifier's training.
_PASSES, _BATCH = 40, 512


class Draw(NamedTuple):
    """Levels (B, M), and indices into KINDS of a first and a different second kind, (B, M)."""

    sigma: Tensor
    first: Tensor
    second: Tensor


def draw_kinds(sigma: Tensor, seed: Tensor, sample_ids: Tensor) -> Draw:
    """For levels (B, M), draw the kinds of every modality of a sample, all with equal probability."""
    shape = len(sigma), 2 * sigma.shape[1]
    u = udml_kernels.uniform(shape, seed, stream=Stream.KINDS, sample_ids=sample_ids)
    a, b = u.chunk(2, 1)
    first = (a * len(KINDS)).long()
    return Draw(sigma, first, (first + 1 + (b * (len(KINDS) - 1)).long()) % len(KINDS))


class MixedKinds:
    """Degrades inputs by a level of a kind, with the same power for all kinds on inputs of variance 1.

    Gaussian and uniform noise have the spec's standard deviation s at that level; speckle uses s as its factor; salt
    and pepper change a fraction (s / EXTREME)^2. The power of dropout cannot exceed the input's: it drops a fraction
    sigma / ALL_DROPPED.
    """

    def __init__(self, spec: DataSpec):
        self.names = spec.modalities
        self.units = torch.tensor([spec.noise[name].unit for name in self.names])
        clamp = (-EXTREME, EXTREME)
        self.injector = NoiseInjector([replace(spec.noise[name], clamp=clamp) for name in self.names])

    def __call__(self, inputs: Sequence[Tensor], sigma: Tensor, kind: Tensor, **random) -> list[Tensor]:
        """M inputs (B, ...), levels (B, M) and indices into KINDS (B, M) to noisy inputs."""
        s = sigma * self.units
        levels = torch.stack((sigma, sigma, s, (s / EXTREME) ** 2, sigma / ALL_DROPPED), -1)
        own = levels.gather(2, kind.unsqueeze(2)).squeeze(2)
        return self.injector(inputs, own, kind=_CODES[kind], **random)


class KindsPass(NoisyPass):
    """A `NoisyPass` in which every modality of a sample draws its kind of noise."""

    def __init__(self, spec: DataSpec):
        super().__init__(spec)
        self.degrade, self.spec = MixedKinds(spec), spec

    def __call__(self, model: nn.Module, batch: Batch, sigma: Tensor | None, *, seed: Tensor, **options) -> Any:
        if sigma is None:
            return super().__call__(model, batch, None, seed=seed, **options)
        return self.run(model, batch, draw_kinds(sigma, seed, batch.index), seed, options["weighting"])

    def run(self, model: nn.Module, batch: Batch, draw: Draw, seed: Tensor, weighting: bool, share: float = 1.0) -> Any:
        """The Output under the drawn noise; the first kind has `share` of its power, the second the rest."""
        ids, inputs = batch.index, [batch.inputs[name] for name in self.names]
        noisy = self.degrade(inputs, draw.sigma * share**0.5, draw.first, seed=seed, sample_ids=ids)
        if share < 1:
            rest = draw.sigma * (1 - share) ** 0.5
            noisy = self.degrade(noisy, rest, draw.second, seed=seed + 1, sample_ids=ids)
        named = dict(zip(self.names, noisy, strict=True))
        return model(named, sigma=draw.sigma, weighting=weighting, seed=seed, sample_ids=ids)


def noise_types(config: TrainConfig, data: MultimodalData, model: Callable[[], nn.Module]) -> dict[str, Any]:
    """Train the model that a function builds on all kinds, then a `NoiseTypeClassifier` on its statistics; test both.

    Returns:
        "accuracy" of the classifier on the test split's mix of levels and of the "majority" class, clean; "by_level";
        "confusion": rows the truth, columns the answer, of CLASSES, as fractions of the row; "mixed": for each of
        SHARES the fractions answered with the first kind, with one of the two, and with the two as the likeliest two.
    """
    result = train(config, data, model=model, forward_pass=KindsPass(data.spec), progress=False)
    probe = _Probe(result.model, data, result.weighting)
    classifier = probe.fit(config.seed, draws=-(-config.epochs // 3))
    batch, size = probe.whole(data.test), (len(data.test), len(data.spec.modalities))
    mix = _mix(batch, size[1], data.spec.max_sigma, 0)
    answers, truth = probe.ask(classifier, batch, mix, 0).argmax(2), _classes(mix)
    confusion = torch.zeros(len(CLASSES), len(CLASSES))
    confusion.index_put_((truth.flatten(), answers.flatten()), torch.ones(truth.numel()), accumulate=True)
    by_level = []
    for number, level in enumerate(LEVELS, 1):
        draw = draw_kinds(torch.full(size, float(level)), _seed(number), batch.index)
        by_level.append(_share(probe.ask(classifier, batch, draw, number).argmax(2) == _classes(draw)))
    return {
        "accuracy": _share(answers == truth),
        "majority": _share(truth == 0),
        "by_level": by_level,
        "confusion": (confusion / confusion.sum(1, keepdim=True)).tolist(),
        "mixed": [probe.mixed(classifier, batch, share, 10 + n) for n, share in enumerate(SHARES)],
    }


class _Probe:
    """A trained model's embeddings under noise of all kinds, and the classifier on them."""

    def __init__(self, model: nn.Module, data: MultimodalData, weighting: bool):
        self.model, self.data, self.weighting, self.forward = model, data, weighting, KindsPass(data.spec)

    @staticmethod
    def whole(split: Split) -> Batch:
        return split.__getitems__(list(range(len(split))))

    @torch.no_grad()
    def embed(self, batch: Batch, draw: Draw, number: int, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """The stds and the means, (M, B, C) each."""
        output = self.forward.run(self.model, batch, draw, _seed(number), self.weighting, share)
        return torch.stack(output.std), torch.stack(output.features)

    def fit(self, seed: int, draws: int) -> NoiseTypeClassifier:
        """A classifier trained on `draws` draws of the noise on the training split."""
        batch, spec = self.whole(self.data.train), self.data.spec
        stds, means, kinds = [], [], []
        for number in range(_FIRST_TRAINING_DRAW, _FIRST_TRAINING_DRAW + draws):
            draw = _mix(batch, len(spec.modalities), spec.max_sigma, number)
            std, mean = self.embed(batch, draw, number)
            stds.append(std)
            means.append(mean)
            kinds.append(_classes(draw))
        std, mean, kind = torch.cat(stds, 1), torch.cat(means, 1), torch.cat(kinds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier = NoiseTypeClassifier(len(spec.modalities), std.shape[2], CLASSES)
            optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
            for _ in range(-(-_PASSES * len(kind) // _BATCH)):
                rows = torch.randint(len(kind), (_BATCH,))
                loss = classifier.loss(classifier(std[:, rows], mean[:, rows]), kind[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return classifier.eval()

    @torch.no_grad()
    def ask(self, classifier, batch: Batch, draw: Draw, number: int, share: float = 1.0) -> Tensor:
        """Logits (B, M, classes)."""
        return classifier(*self.embed(batch, draw, number, share))

    def mixed(self, classifier, batch: Batch, share: float, number: int) -> dict[str, float]:
        """Results for two kinds on one input, at levels from 2 up to the highest in training."""
        shape = len(batch), len(self.data.spec.modalities)
        u = udml_kernels.uniform(shape, _seed(number), stream=Stream.LEVELS, sample_ids=batch.index)
        draw = draw_kinds(2 + (self.data.spec.max_sigma - 2) * u, _seed(number), batch.index)
        logits = self.ask(classifier, batch, draw, number, share)
        answer, both = logits.argmax(2), torch.stack((draw.first, draw.second), 2) + 1
        likeliest = logits.topk(2, 2).indices
        return {
            "first": _share(answer == both[..., 0]),
            "either": _share((answer.unsqueeze(2) == both).any(2)),
            "both": _share((likeliest.sort(2).values == both.sort(2).values).all(2)),
        }


def _mix(batch: Batch, modalities: int, max_sigma: float, number: int) -> Draw:
    sigma = mixed_sigma(len(batch), modalities, max_sigma, _seed(number), batch.index)
    return draw_kinds(sigma, _seed(number), batch.index)


def _classes(draw: Draw) -> Tensor:
    return torch.where(draw.sigma > 0, draw.first + 1, 0)


def _seed(number: int) -> Tensor:
    # Even numbers: mixed kinds use the next seed for the second noise.
    return evaluation_seed(2 * number)


def _share(right: Tensor) -> float:
    return float(right.float().mean())
