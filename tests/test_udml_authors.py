"""The preset "authors" against an independent transcription of their model, with the same draws, in float64."""

import copy
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed
from udml.encoders import Framewise
from udml.models import UDML, authors_levels, authors_state, load_authors

import udml_kernels

from .authors_model import (
    HIDDEN,
    AuthorsModel,
    checkpoint,
    step_loss,
    train_step,
)

BATCH, FRAMES, WIDTH, CLASSES, DROPPED = 6, 3, 5, 4, 0.1
GAMMA, BETA, STD_MAX = 4.0, 1e-5, 1.1
HEADS = ("concat", "sum", "gated", "film")
IDS = torch.tensor([7, 3, 40, 0, 12, 9])
CLOSE = {"rtol": 1e-9, "atol": 1e-13}
# Whether the inputs are noisy, and whether training weights by uncertainty.
PHASES = {"clean": (False, False), "noisy": (True, False), "uncertainty": (True, True)}


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def trunk(channels: int) -> "OrderedDict[str, nn.Module]":
    conv = nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1)
    return OrderedDict(conv1=conv, bn1=nn.BatchNorm2d(WIDTH), layer1=nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1)))


def authors(fusion: str, limit: float = STD_MAX) -> AuthorsModel:
    return AuthorsModel(CLASSES, WIDTH, trunk(1), trunk(3), fusion=fusion, max_std_audio=limit).double()


def empty_udml(fusion: str, limit: float = STD_MAX, **options) -> UDML:
    encoders = {"audio": nn.Sequential(trunk(1)), "visual": Framewise(nn.Sequential(trunk(3)), WIDTH)}
    return UDML(encoders, CLASSES, fusion, preset="authors", std_max={"audio": limit}, **options).double()


def pair(fusion: str, limit: float = STD_MAX) -> tuple[AuthorsModel, UDML]:
    theirs, ours = authors(fusion, limit), empty_udml(fusion, limit)
    load_authors(ours, checkpoint(theirs, BETA, GAMMA))
    return theirs, ours


def batch(seed: Tensor, noisy: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Audio, frames, levels and classes."""
    level = authors_levels(BATCH, 2, seed, IDS).level.double() if noisy else torch.ones(BATCH, 2).double()
    audio, frames = torch.randn(BATCH, 1, 6, 8).double(), torch.randn(BATCH, 3, FRAMES, 4, 6).double()
    return audio, frames, level, torch.randint(CLASSES, (BATCH,))


def draws(seed: Tensor) -> dict[str, Tensor]:
    """What the ops draw in a step: op 2 is reparameterize, op 3 noise_regression; 256 is the second modality's."""

    def normal(shape: tuple[int, ...], stream: int) -> Tensor:
        return udml_kernels.normal(shape, seed, stream=stream, sample_ids=IDS, dtype=torch.float64)

    uniform = udml_kernels.uniform((BATCH, 2, HIDDEN), seed, stream=3, sample_ids=IDS)
    keep = (uniform >= torch.tensor(DROPPED)).double() / (1 - DROPPED)
    return {
        "eps_audio": normal((BATCH, WIDTH, 3, 4), 2),
        "eps_visual": normal((BATCH, WIDTH, FRAMES, 2, 3), 2 + 256).transpose(1, 2).flatten(0, 1),
        "keep_audio": keep[:, 0],
        "keep_visual": keep[:, 1],
    }


def assert_same_output(ours, theirs) -> None:
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)
    torch.testing.assert_close(ours.unimodal, torch.stack(theirs.unimodal), **CLOSE)
    torch.testing.assert_close(ours.weights, theirs.weights, **CLOSE)
    torch.testing.assert_close(ours.noise, theirs.noise, **CLOSE)


def assert_same_state(ours: UDML, theirs: AuthorsModel) -> None:
    """Parameters, BatchNorm's statistics and alpha."""
    state, expected = authors_state(ours), checkpoint(theirs, BETA, GAMMA)
    torch.testing.assert_close(state, expected, **CLOSE)


def gradients(ours: UDML) -> dict[str, Tensor]:
    """Under the authors' names."""
    holder = copy.deepcopy(ours)
    for p, mine in zip(holder.parameters(), ours.parameters(), strict=True):
        assert mine.grad is not None
        p.data = mine.grad.clone()
    return {name.removeprefix("module."): value for name, value in authors_state(holder)["model"].items()}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fusion", HEADS)
def test_three_steps(fusion, phase):
    noisy, uncertainty = PHASES[phase]
    theirs, ours = pair(fusion)
    theirs_sgd, ours_sgd = (
        torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4) for net in (theirs, ours)
    )
    clamped = 0
    for step in range(3):
        seed = torch.tensor([100 + step])
        audio, frames, level, target = batch(seed, noisy)
        inputs = {"audio": audio, "visual": frames}

        expected = theirs.train()(audio, frames, **draws(seed), uncertainty=uncertainty)
        output = ours.train()(inputs, sigma=level, weighting=uncertainty, seed=seed, sample_ids=IDS)
        assert_same_output(output, expected)
        alpha = torch.tensor([theirs.audio_depend, theirs.visual_depend], dtype=torch.float64)
        torch.testing.assert_close(output.dependency, alpha, **CLOSE)
        clamped += int((expected.std[0] == STD_MAX).sum())

        losses = step_loss(expected, level, target, GAMMA, BETA)
        terms = ours.loss(output, target)
        torch.testing.assert_close(terms, {name: getattr(losses, name) for name in terms}, **CLOSE)
        assert set(terms) == {"task", "unimodal", "kl", "noise"}

        ours_sgd.zero_grad()
        sum(terms.values()).backward()
        train_step(theirs, theirs_sgd, expected, losses)
        nn.utils.clip_grad_norm_(ours.parameters(), 40)
        got = gradients(ours)
        for name, p in theirs.named_parameters():
            torch.testing.assert_close(got[name], p.grad, **CLOSE, msg=lambda m, n=name: f"gradient of {n}: {m}")
        ours_sgd.step()
        assert_same_state(ours, theirs)

        # In evaluation the weights fall with the noise in every phase, and alpha rests.
        with torch.no_grad():
            expected = theirs.eval()(audio, frames, uncertainty=uncertainty)
            assert_same_output(ours.eval()(inputs, weighting=uncertainty), expected)
        assert_same_state(ours, theirs)
    assert 0 < clamped < 3 * BATCH * WIDTH * 12, "the limit acts on some elements"


def test_the_limit_of_std_in_the_kl():
    """Where the squared limit is no more than the 1e-8 of the KL's logarithm."""
    theirs, ours = pair("concat", 1e-4)
    seed = torch.tensor([5])
    audio, frames, level, target = batch(seed, True)
    expected = theirs(audio, frames, **draws(seed), uncertainty=True)
    output = ours({"audio": audio, "visual": frames}, sigma=level, seed=seed, sample_ids=IDS)
    kl = step_loss(expected, level, target, GAMMA, BETA).kl
    torch.testing.assert_close(ours.loss(output, target)["kl"], kl, **CLOSE)


def test_an_infinite_error_counts_as_0():
    theirs, ours = (net.float() for net in pair("concat"))
    for estimator in (theirs.audio_variance_estimator, theirs.visual_variance_estimator):
        nn.init.constant_(estimator[2].bias, 92)
    load_authors(ours, checkpoint(theirs, BETA, GAMMA))
    seed = torch.tensor([5])
    audio, frames, level, target = (x.float() if x.is_floating_point() else x for x in batch(seed, True))
    output = ours({"audio": audio, "visual": frames}, sigma=level, seed=seed, sample_ids=IDS, weighting=False)
    assert output.noise.isfinite().all() and output.noise.square().isinf().all()
    term = ours.loss(output, target)["noise"]
    random = {name: x.float() for name, x in draws(seed).items()}
    losses = step_loss(theirs(audio, frames, **random, uncertainty=False), level, target, GAMMA, BETA)
    assert term == losses.noise == 0
    term.backward()
    assert not ours.estimator.weight2.grad.any()


def test_modality_dropout_zeroes_embeddings():
    """The weights and the KL do not see it; a dropped modality alone has the head's bias."""
    probability = 1 - (1 / 3) ** 0.5
    models = [empty_udml("concat", modality_dropout=p) for p in (0.0, probability)]
    models[1].load_state_dict(models[0].state_dict())
    seed = torch.tensor([5])
    audio, frames, level, _ = batch(seed, True)
    whole, dropped = (m({"audio": audio, "visual": frames}, sigma=level, seed=seed, sample_ids=IDS) for m in models)
    assert [torch.equal(getattr(whole, n), getattr(dropped, n)) for n in ("weights", "noise", "kl")] == [True] * 3
    _, kept = udml_kernels.modality_dropout(whole.features, probability, seed=seed, sample_ids=IDS)
    assert kept.any(1).all() and not kept.all()
    for m in range(2):
        expected = torch.where(kept[:, m, None], whole.unimodal[m], models[1].fusion.bias)
        torch.testing.assert_close(dropped.unimodal[m], expected)
    models[1].eval()
    assert torch.equal(models[1]({"audio": audio, "visual": frames}).weights > 0, torch.ones(BATCH, 2).bool())


def test_alpha_of_its_own_sample_needs_unweighted_logits():
    with pytest.raises(ValueError, match="per_sample: expected False with weigh_first"):
        empty_udml("concat", per_sample=True)


def test_a_compiled_step():
    model = empty_udml("gated", modality_dropout=0.3)
    state, results = copy.deepcopy(model.state_dict()), []

    def terms(audio, frames, level, target, seed):
        output = model({"audio": audio, "visual": frames}, sigma=level, seed=seed, sample_ids=IDS)
        return model.loss(output, target)

    for step in (terms, torch.compile(terms, fullgraph=True, backend="aot_eager")):
        model.load_state_dict(state)
        for seed in (torch.tensor([5]), torch.tensor([6])):
            model.zero_grad()
            torch.manual_seed(1)
            losses = step(*batch(seed, True), seed)
            sum(losses.values()).backward()
        results.append(
            (losses, {name: p.grad for name, p in model.named_parameters()}, copy.deepcopy(model.state_dict()))
        )
    torch.testing.assert_close(results[1], results[0])


def test_a_step_repeated_by_checkpointing():
    """The repeated forward pass weighs by the alpha that the step began with, and alpha moves once."""
    model, results = empty_udml("concat"), []
    state = copy.deepcopy(model.state_dict())
    for repeated in (False, True):
        model.load_state_dict(state)
        for seed in (torch.tensor([5]), torch.tensor([6])):
            torch.manual_seed(1)
            audio, frames, level, target = batch(seed, True)

            def loss(audio, frames, seed=seed, level=level, target=target):
                output = model({"audio": audio, "visual": frames}, sigma=level, seed=seed, sample_ids=IDS)
                return sum(model.loss(output, target).values())

            model.zero_grad()
            step = partial(checkpointed, loss, use_reentrant=False) if repeated else loss
            step(audio, frames).backward()
        results.append((copy.deepcopy(model.state_dict()), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(results[1], results[0])
