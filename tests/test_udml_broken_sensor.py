"""What a broken sensor of one modality gives must not reach the answer of the others, in training and in evaluation."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from udml.encoders import ConvEncoder1d, MLPEncoder
from udml.fusion import FUSIONS
from udml.models import METHODS, MultimodalModel, build_model

BATCH, FEATURES, WIDTH, CLASSES = 16, 6, 8, 5
NAN, INF = float("nan"), float("inf")
SOME = torch.arange(BATCH) % 3 == 1


def some(fault):
    return lambda x: torch.where(SOME.reshape(-1, 1), fault(x), x)


def one_feature(value: float):
    return lambda x: torch.cat((torch.full_like(x[:, :1], value), x[:, 1:]), 1)


FAULTS = {f"times 1e{k}": partial(torch.mul, other=10.0**k) for k in (2, 4, 6)} | {
    "stuck at 0": torch.zeros_like,
    "stuck at 2": lambda x: torch.full_like(x, 2.0),
    "stuck at 1e6": lambda x: torch.full_like(x, 1e6),
    "one feature 1000": one_feature(1000.0),
    "nan": lambda x: torch.full_like(x, NAN),
    "inf": lambda x: torch.full_like(x, -INF),
    "1e38": lambda x: torch.full_like(x, 1e38) * x.sign(),
    "one feature nan": one_feature(NAN),
    "one feature inf": one_feature(INF),
}
FAULTS |= {f"some {name}": some(FAULTS[name]) for name in ("times 1e6", "stuck at 2", "nan", "one feature inf")}


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def make(method: str, fusion: str = "concat", modalities: int = 3, **options) -> MultimodalModel:
    encoders = {f"m{m}": MLPEncoder(FEATURES, WIDTH) for m in range(modalities)}
    return build_model(method, encoders, CLASSES, fusion=fusion, **options)


def draw(model: MultimodalModel) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    inputs = {name: torch.randn(BATCH, FEATURES) for name in model.modalities}
    step = {"sigma": 4 * torch.rand(BATCH, len(inputs)), "seed": torch.tensor([11])}
    return inputs, torch.randint(CLASSES, (BATCH,)), step


def train_step(model: MultimodalModel, inputs, target, **step):
    model.zero_grad()
    output = model.train()(inputs, **step)
    terms = model.loss(output, target, epoch_fraction=0.5, sigma=step["sigma"])
    sum(terms.values()).backward()
    model.after_backward(output, target, seed=step["seed"])
    return output, terms


def assert_finite(model: MultimodalModel, output, terms=()) -> None:
    for name in ("logits", "unimodal", "weights", "kl", "noise_loss", "dependency"):
        value = getattr(output, name)
        assert value is None or value.isfinite().all(), name
    for name, value in [*dict(terms).items(), *model.named_buffers()]:
        assert value.isfinite().all(), name
    for name, p in model.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_broken_modality_is_a_missing_one(method, fusion):
    """Of every fault, in a trained model: the step and the answer are those with the modality masked."""
    model = make(method, fusion)
    inputs, target, step = draw(model)
    for _ in range(3):
        train_step(model, inputs, target, **step)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for fault, breaks in FAULTS.items():
        broken = {**inputs, "m1": breaks(inputs["m1"])}
        present = torch.ones(BATCH, 3, dtype=torch.bool)
        present[:, 1] = ~SOME if fault.startswith("some") else False
        found = []
        for given, mask in ((broken, None), (inputs, present)):
            model.load_state_dict(state)
            output, terms = train_step(model, given, target, present=mask, **step)
            assert_finite(model, output, terms)
            moved = {name: value.clone() for name, value in model.named_buffers() if not name.startswith("guard.")}
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            with torch.no_grad():
                answer = model.eval()(given, sigma=step["sigma"], present=mask)
            assert_finite(model, answer)
            found.append((output.logits.detach(), answer.logits, answer.weights, moved, gradients))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, msg=lambda m, f=fault: f"{f}: {m}")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("method", METHODS)
def test_from_the_first_step_on(method, fault):
    """A model that has never seen a healthy sensor, trained and before any training."""
    model = make(method)
    inputs, target, step = draw(model)
    inputs["m1"] = FAULTS[fault](inputs["m1"])
    assert_finite(model, model.eval()(inputs, sigma=step["sigma"]))
    for _ in range(2):
        assert_finite(model, *train_step(model, inputs, target, **step))
    assert_finite(model, model.eval()(inputs, sigma=step["sigma"]))


@pytest.mark.parametrize("method", METHODS)
def test_statistics_rest_in_a_batch_without_the_modality(method):
    model = make(method)
    inputs, target, step = draw(model)
    train_step(model, inputs, target, **step)
    own = ("encoders.m1.", "heads.m1.")
    before = {name: value.clone() for name, value in model.named_buffers() if name.startswith(own)}
    alpha = model.dependency.alpha.clone() if method in ("udml", "oracle") else None
    inputs, _, _ = draw(model)
    for value in (NAN, INF):
        train_step(model, {**inputs, "m1": torch.full_like(inputs["m1"], value)}, target, **step)
    after = dict(model.named_buffers())
    assert before and all(torch.equal(after[name], value) for name, value in before.items())
    if alpha is not None:
        assert (model.dependency.alpha != alpha).tolist() == [True, False, True]


def test_batchnorm_sees_healthy_samples_alone():
    """Each of those in the place of a broken one as often as the others, as near as may be."""
    model = make("static")
    inputs, _, _ = draw(model)
    healthy = inputs["m1"][:4]
    inputs["m1"] = torch.cat((healthy[:2], torch.full((BATCH - 4, FEATURES), NAN), healthy[2:]))
    model(inputs)
    mean = model.encoders["m1"][0](healthy).mean(0)
    torch.testing.assert_close(model.encoders["m1"][1].running_mean, 0.1 * mean)


def test_all_broken_samples_answer_with_the_bias():
    model = make("udml")
    inputs, target, step = draw(model)
    broken = {name: torch.where(SOME.reshape(-1, 1), NAN, x) for name, x in inputs.items()}
    output, terms = train_step(model, broken, target, **step)
    assert_finite(model, output, terms)
    assert torch.equal(output.present.any(1), ~SOME)
    torch.testing.assert_close(output.logits[SOME], model.fusion.bias.expand(int(SOME.sum()), -1))


@pytest.mark.parametrize("preset", ["default", "authors"])
def test_the_authors_preset_has_no_limits(preset):
    model = make("udml", preset=preset)
    guarded = preset == "default"
    assert (model.guard is not None) == guarded == (model.settings.std_max is not None)
    inputs, _, _ = draw(model)
    assert (model.eval()({**inputs, "m1": inputs["m1"] * 1e3}).logits.isfinite().all()) or not guarded


def test_a_compiled_step_is_the_eager_one():
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = make("udml")
        inputs, target, step = draw(model)
        inputs["m1"][::2] = NAN
        inputs["m2"][:] = INF

        def objective(inputs, target, model=model, **step):
            output = model(inputs, **step)
            return sum(model.loss(output, target).values()), output.logits

        function = torch.compile(objective, fullgraph=True, backend="aot_eager") if compiled else objective
        loss, logits = function(inputs, target, **step)
        loss.backward()
        results.append((loss, logits, {n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    torch.testing.assert_close(results[1], results[0])


def test_states_without_a_guard_load():
    model = make("static")
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("guard.")}
    train_step(model, *(given := draw(model))[:2], **given[2])
    model.load_state_dict(state)
    assert not any(buffer.any() for buffer in model.guard.buffers())


@pytest.mark.parametrize("limit", [1, 0.5, NAN])
def test_a_limit_that_means_nothing_is_refused(limit):
    with pytest.raises(ValueError, match="limit: expected a number above 1, got"):
        make("static", input_limit=limit)


def test_signals_and_images_of_a_broken_sensor():
    encoders = {
        "signal": ConvEncoder1d(3, WIDTH),
        "image": nn.Sequential(nn.Conv2d(2, WIDTH, 3), nn.BatchNorm2d(WIDTH)),
    }
    model = build_model("udml", encoders, CLASSES)
    inputs = {"signal": torch.randn(BATCH, 3, 32), "image": torch.randn(BATCH, 2, 8, 6)}
    step = {"sigma": torch.rand(BATCH, 2), "seed": torch.tensor([1])}
    inputs["signal"][SOME, 1, 5] = NAN
    inputs["image"][0] *= 1e6
    output, terms = train_step(model, inputs, torch.randint(CLASSES, (BATCH,)), **step)
    assert_finite(model, output, terms)
    assert torch.equal(output.present[:, 0], ~SOME)
    assert output.present[:, 1].tolist() == [False] + [True] * (BATCH - 1)
