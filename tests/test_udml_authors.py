"""The preset "authors" against an independent transcription of their model, with the same draws, in float64."""

import copy
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed
from udml.encoders import Framewise
from udml.layers import Noise, NoiseInjector
from udml.models import UDML, authors_levels, authors_noise, authors_state, build_model, load_authors

import udml_kernels

from .authors_model import (
    HIDDEN,
    AuthorsModel,
    authors_noise_audio,
    authors_noise_image,
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


@pytest.fixture(autouse=True)
def quiet():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.parametrize("fusion", ["gated", "film"])
def test_heads_of_two_modalities_refuse_three(fusion):
    with pytest.raises(ValueError, match=r"widths: expected two, .* got \[5, 5, 5\]"):
        UDML({name: nn.Sequential(trunk(2)) for name in "avx"}, CLASSES, fusion, preset="authors", width=WIDTH)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_more_modalities(fusion):
    """w_m is proportional to 1 / (s_m^2 alpha_m), or to 1 / alpha_m, and sums to M; alpha goes on as its last."""
    names = ("audio", "visual", "depth")
    model = UDML({name: nn.Sequential(trunk(2)) for name in names}, CLASSES, fusion, preset="authors", width=WIDTH)
    inputs = {name: torch.randn(3, 2, 4, 4) for name in names}
    alpha = torch.tensor([32.0, 10.0, 10.0])
    torch.testing.assert_close(model.dependency.alpha, alpha)
    for weighting in (False, True):
        output = model(inputs, sigma=torch.ones(3, 3), weighting=weighting, seed=torch.tensor([1]))
        torch.testing.assert_close(output.dependency, alpha)
        inverse = 1 / ((output.noise**2 if weighting else torch.ones(3, 3)) * alpha)
        torch.testing.assert_close(output.weights, 3 * inverse / inverse.sum(1, keepdim=True))
        alpha = output.unimodal.detach().abs().sum(2).mean(1)
        torch.testing.assert_close(model.dependency.alpha, alpha)
    torch.testing.assert_close(model.eval()(inputs).dependency, alpha)


def test_std_max_by_name():
    encoders = {name: nn.Sequential(trunk(2)) for name in ("audio", "visual")}
    for preset, limit, expected in (
        ("authors", {"audio": 0.5}, (0.5, None)),
        ("authors", {}, (None, None)),
        ("default", {"audio": 0.5}, (0.5, 100.0)),
        ("default", {"visual": None}, (100.0, None)),
        ("default", 2, (2, 2)),
        ("default", None, (None, None)),
    ):
        model = UDML(encoders, CLASSES, preset=preset, std_max=limit, width=WIDTH)
        assert tuple(head.std_max for head in model.heads.values()) == expected
    plain = build_model("pe", encoders, CLASSES, std_max={"visual": 3.0}, width=WIDTH)
    assert [head.std_max for head in plain.heads.values()] == [100.0, 3.0]
    model = UDML(encoders, CLASSES, std_max={"audio": 0.5}, width=WIDTH)
    std = model({name: torch.randn(3, 2, 4, 4) for name in encoders}, seed=torch.tensor([1])).std
    assert std[0].max() <= 0.5 < std[1].max()
    for limit, error, message in (
        ({"sound": 1.0}, ValueError, "std_max: expected the names audio, visual, got sound"),
        ({"audio": 0.0}, ValueError, r"std_max\['audio'\]: expected a positive number or None, got 0.0"),
        ({"audio": float("nan")}, ValueError, r"std_max\['audio'\]: expected a positive number"),
        ({"audio": "10"}, TypeError, r"std_max\['audio'\]: expected a positive number or None, got '10'"),
        (-1.0, ValueError, "std_max: expected a positive number or None, got -1.0"),
        ([10.0], TypeError, r"std_max: expected a positive number or None, got \[10.0\]"),
    ):
        with pytest.raises(error, match=message):
            UDML(encoders, CLASSES, std_max=limit, width=WIDTH)


def test_alpha_of_its_own_sample_needs_unweighted_logits():
    with pytest.raises(ValueError, match="per_sample: expected False with weigh_first"):
        empty_udml("concat", per_sample=True)


def test_levels():
    seed, ids = torch.tensor([5]), torch.arange(20_000)
    levels = authors_levels(len(ids), 2, seed, ids)
    clean = (levels.level == 1).all(1)
    # Half are clean by design, of the others one in 121 by chance; 4 standard deviations of a mean are 0.015.
    assert abs(clean.double().mean() - (0.5 + 0.5 / 121)) < 0.015
    noisy = levels.level[~clean]
    assert noisy.unique().tolist() == list(range(1, 12))
    shares = torch.stack([(noisy == k).double().mean() for k in range(2, 12)])
    assert (shares - 1 / 11).abs().max() < 0.012
    names = [udml_kernels.KINDS[k] for k in levels.kind.unique().tolist()]
    assert sorted(names) == ["gaussian", "replace"]
    assert torch.equal(levels.kind == udml_kernels.KINDS.index("replace"), levels.level == 11)
    torch.testing.assert_close(levels.sigma, torch.where(levels.level == 1, 0, levels.level))
    part = authors_levels(3, 2, seed, ids[[70, 3, 900]])
    torch.testing.assert_close(part.level, levels.level[[70, 3, 900]])


def test_noise():
    """Of all levels; one draw for the colour channels, whole numbers, level 11 without the input."""
    count, seed = 400, torch.tensor([8])
    ids = torch.randperm(1000)[:count]
    drawn = authors_levels(count, 2, seed, ids)
    audio, image = torch.randn(count, 1, 3, 4), torch.randint(256, (count, 3, 4, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    noises = [Noise(), Noise(power=2, clamp=(0, 255), normalize=(255, mean.tolist(), std.tolist()))]
    inject = NoiseInjector([authors_noise(noise) for noise in noises])
    got = inject([audio, image], drawn.sigma, kind=drawn.kind, seed=seed, sample_ids=ids)

    eps = udml_kernels.normal((count, 1, 3, 4), seed, stream=1, sample_ids=ids)
    expected = authors_noise_audio(audio, drawn.level[:, 0], eps)
    assert expected.max() == 255 and expected.min() < -255
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-4)

    eps = udml_kernels.normal((count, 4, 5), seed, stream=1 + 256, sample_ids=ids).unsqueeze(1)
    expected = authors_noise_image(image.float(), drawn.level[:, 1], eps, wrap=False)
    pixels = (got[1] * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    # A sum that rounds to another side of a whole number: less than one in 10,000.
    assert ((pixels - expected).abs() > 0.5).float().mean() < 1e-4
    grey = drawn.level[:, 1] == 11
    assert grey.any() and bool((pixels[grey].round() == pixels[grey][:, :1].round()).all())


def test_a_shared_draw_of_every_kind():
    x, sigma, seed = torch.rand(4, 3, 5), torch.full((4, 1), 0.3), torch.tensor([8])
    inject = NoiseInjector([Noise(clamp=(-2, 2), shared_channels=True)])
    for kind in (*udml_kernels.KINDS, torch.arange(4)):
        got = inject([x], sigma, kind=kind, seed=seed)[0]
        for c in range(3):
            options = {"kind": kind, "clamp": (-2, 2), "seed": seed}
            torch.testing.assert_close(got[:, c], udml_kernels.inject_noise(x[:, c], sigma[:, 0], **options))
    assert inject([x[:0]], sigma[:0], seed=seed)[0].shape == (0, 3, 5)
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected \(B, C, ...\) to share a draw over C, got \(4,\)"):
        inject([x[:, 0, 0]], sigma, seed=seed)


@pytest.mark.parametrize("fusion", HEADS)
def test_weights_for_each_location_and_missing_modalities(fusion):
    encoders = {name: nn.Sequential(trunk(2)) for name in ("audio", "visual")}
    model = UDML(encoders, CLASSES, fusion, preset="authors", task="segmentation", width=WIDTH)
    inputs = {name: torch.randn(4, 2, 8, 6) for name in encoders}
    present = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]]).bool()
    for name, here in zip(inputs, present.unbind(1), strict=True):
        inputs[name][~here] = torch.nan
    output = model(inputs, sigma=torch.ones(4, 2), present=present, seed=torch.tensor([1]))
    assert output.logits.shape == (4, CLASSES, 8, 6) and output.weights.shape == (4, 2, 4, 3)
    sums = present.sum(1).reshape(-1, 1, 1).expand(4, 4, 3).float()
    torch.testing.assert_close(output.weights.sum(1), sums)
    assert torch.equal(output.weights > 0, present[..., None, None].expand(4, 2, 4, 3))
    sum(model.loss(output, torch.randint(CLASSES, (4, 8, 6))).values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


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
