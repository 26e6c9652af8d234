"""What every method promises: shapes, gradients, missing modalities, compilation, checkpoints, errors."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from udml.encoders import ConvEncoder1d, Framewise, MLPEncoder
from udml.models import METHODS, UDML, MultimodalModel, Output, build_model

import udml_kernels

BATCH, WIDTH, CLASSES = 6, 8, 5
IDS = torch.tensor([7, 3, 40, 0, 12, 9])
TASKS = ("classification", "segmentation")
EXTRA = {"pe": {"kl"}, "udml": {"kl", "noise"}, "oracle": {"kl"}}


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def image_encoder() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, WIDTH, 3, stride=2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())


def make(method: str, modalities: int = 2, task: str = "classification", **options) -> MultimodalModel:
    encoders = {f"m{m}": image_encoder() for m in range(modalities)}
    return build_model(method, encoders, CLASSES, task=task, **options)


def batch_for(model: MultimodalModel) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
    """Inputs, target, and what else a step is given."""
    inputs = {name: torch.randn(BATCH, 2, 8, 6) for name in model.modalities}
    target = torch.randint(CLASSES, (BATCH,) if model.task == "classification" else (BATCH, 8, 6))
    if target.dim() > 1:
        target[:, :2] = 255
    sigma = 4 * torch.rand(BATCH, len(inputs))
    return inputs, target, {"sigma": sigma, "seed": torch.tensor([11]), "sample_ids": IDS}


def train_step(model: MultimodalModel, inputs, target, **step) -> tuple[Output, dict[str, Tensor]]:
    output = model(inputs, **step)
    terms = model.loss(output, target, epoch_fraction=0.05, sigma=step.get("sigma"))
    sum(terms.values()).backward()
    model.after_backward(output, target, seed=step["seed"])
    return output, terms


@pytest.mark.parametrize("modalities", [2, 3, 6])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_step(method, task, modalities):
    model = make(method, modalities, task)
    inputs, target, step = batch_for(model)
    output, terms = train_step(model, inputs, target, **step)
    small, large = ((), ()) if task == "classification" else ((4, 3), (8, 6))
    assert output.logits.shape == (BATCH, CLASSES, *large)
    assert output.unimodal.shape == (modalities, BATCH, CLASSES, *small)
    assert output.weights.shape in ((BATCH, modalities), (BATCH, modalities, *small))
    if method in ("pe", "udml"):
        assert output.noise.shape == output.weights.shape == (BATCH, modalities, *small)
        assert output.kl.shape == (BATCH,)
    if method not in ("qmf", "tmc"):
        sums = output.weights.sum(1)
        if model.weighting.reference is None:
            torch.testing.assert_close(sums, torch.full_like(sums, modalities))
        else:
            assert ((sums > 0) & (sums < modalities)).all(), "they fade against the reference"
    assert set(terms) == {"task", "unimodal"} | EXTRA.get(method, set())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("method", METHODS)
def test_gamma_0_leaves_the_unimodal_losses_out(method):
    model = make(method, gamma=0.0)
    _, terms = train_step(model, *(batch := batch_for(model))[:2], **batch[2])
    assert "unimodal" not in terms and "task" in terms


def without_last(model: MultimodalModel, method: str) -> MultimodalModel:
    """The same model for all modalities but the last, whose values come last wherever modalities are side by side."""
    smaller, whole = make(method, len(model.modalities) - 1, model.task), model.state_dict()
    smaller.load_state_dict({n: whole[n][tuple(map(slice, v.shape))] for n, v in smaller.state_dict().items()})
    return smaller


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_missing_modality_is_a_model_without_it(method, task):
    """In training too: each modality has its own BatchNorm. What the missing input holds does not matter."""
    model = make(method, 3, task)
    smaller = without_last(model, method)
    inputs, target, step = batch_for(model)
    inputs["m2"].fill_(torch.nan)
    step["sigma"][:, 2] = torch.nan
    present = torch.tensor([[True, True, False]] * BATCH)
    output, terms = train_step(model, inputs, target, present=present, **step)
    step["sigma"] = step["sigma"][:, :2]
    expected, expected_terms = train_step(smaller, {n: inputs[n] for n in smaller.modalities}, target, **step)
    if "noise" in terms:
        # A mean over M, to which the missing one adds 0.
        expected_terms["noise"] = expected_terms["noise"] * 2 / 3
    torch.testing.assert_close(terms, expected_terms)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.weights[:, :2], expected.weights)
    assert (output.weights[:, 2] == 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("fusion", ["sum", "gated", "film", "attention"])
@pytest.mark.parametrize("method", ["udml", "tmc"])
def test_some_samples_miss_some_or_all_modalities(method, fusion):
    model = make(method, 3, fusion=fusion)
    inputs, target, step = batch_for(model)
    present = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]]).bool()
    for name, here in zip(inputs, present.unbind(1), strict=True):
        inputs[name][~here] = torch.nan
    output, terms = train_step(model, inputs, target, present=present, **step)
    assert all(term.isfinite() for term in terms.values()) and output.logits.isfinite().all()
    assert torch.equal(output.weights > 0, present)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    whole = model.eval()({n: torch.nan_to_num(x) for n, x in inputs.items()})
    torch.testing.assert_close(model(inputs, present=present).logits[2], whole.logits[2])


def test_features_of_any_dimensions_are_pooled_after_the_embedding():
    encoders = {
        "vector": MLPEncoder(7, WIDTH),
        "signal": ConvEncoder1d(3, WIDTH),
        "image": image_encoder(),
        "frames": Framewise(image_encoder(), WIDTH),
    }
    model = UDML(encoders, CLASSES)
    inputs = {
        "vector": torch.randn(BATCH, 7),
        "signal": torch.randn(BATCH, 3, 32),
        "image": torch.randn(BATCH, 2, 8, 6),
        "frames": torch.randn(BATCH, 2, 3, 8, 6),
    }
    output = model(inputs, sigma=torch.rand(BATCH, 4), seed=torch.tensor([1]))
    assert [tuple(f.shape) for f in output.features] == [(BATCH, WIDTH)] * 4
    assert [tuple(s.shape) for s in output.std] == [(BATCH, WIDTH)] * 4
    model.eval()
    head, features = model.heads["image"], model.encoders["image"](inputs["image"])
    linear, norm = head.mu
    conv = nn.functional.conv2d(features, linear.weight[..., None, None], linear.bias)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    normed = (conv - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(model(inputs).features[2], normed.mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_compiled_step_is_the_eager_one():
    inputs, target, step = batch_for(make("udml"))
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = make("udml")

        def terms_of(inputs, target, sigma, seed, ids, model=model):
            output = model(inputs, sigma=sigma, seed=seed, sample_ids=ids)
            return model.loss(output, target) | {"logits": output.logits}

        function = torch.compile(terms_of, fullgraph=True, backend="aot_eager") if compiled else terms_of
        for seed in (torch.tensor([5]), torch.tensor([6])):
            model.zero_grad()
            terms = function(inputs, target, step["sigma"], seed, IDS)
            logits = terms.pop("logits")
            sum(terms.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append((terms, logits.detach(), gradients, model.state_dict()))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint(method):
    model = make(method)
    inputs, target, step = batch_for(model)
    for _ in range(2):
        train_step(model, inputs, target, **step)
    reloaded = make(method)
    reloaded.load_state_dict(model.state_dict())
    first, second = (m.eval()(inputs, sigma=step["sigma"]) for m in (model, reloaded))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.weights, second.weights)
    if method == "udml":
        assert not torch.equal(make(method).dependency.alpha, reloaded.dependency.alpha)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast(method, task):
    model = make(method, task=task)
    inputs, target, step = batch_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(inputs, **step)
        loss = sum(model.loss(output, target).values())
    loss.backward()
    model.after_backward(output, target, seed=step["seed"])
    exact = sum(model.loss(model(inputs, **step), target).values())
    torch.testing.assert_close(loss.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad.isfinite().all() for p in model.parameters())


class Fetches(TorchDispatchMode):
    """Counts what brings a value from the device to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        self.count += packet in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_fetches_nothing(method, task, monkeypatch):
    """On an accelerator, where the ops' argument checks read no values; here they would."""
    monkeypatch.setattr(udml_kernels.checks, "readable", lambda value: None)
    model = make(method, 3, task)
    inputs, target, step = batch_for(model)
    present = torch.rand(BATCH, 3) < 0.8
    with Fetches() as fetches:
        train_step(model, inputs, target, present=present, **step)
        train_step(model, inputs, target, **step)
        assert fetches.count == 0
        target.sum().item()
    assert fetches.count == 1, "the test sees what it is looking for"


def test_errors():
    model = make("udml")
    inputs, target, _ = batch_for(model)
    cases = [
        (lambda: build_model("sota", {"a": image_encoder()}, 2), "method: expected one of static, .*'sota'"),
        (lambda: make("udml", temprature=2), "options: expected some of .*temperature.*, got temprature"),
        (lambda: make("udml", preset="mine"), "preset: expected one of default, authors, got 'mine'"),
        (lambda: make("udml", gamma=float("nan")), "gamma: expected a finite number that is not negative, got nan"),
        (lambda: make("static", beta=-1.0), "beta: expected a finite number that is not negative, got -1.0"),
        (lambda: make("tmc", lam=10**400), "lam: expected a finite number that is not negative, got an integer"),
        (lambda: make("static", fusion="magic"), "fusion: expected one of concat, .*'magic'"),
        (lambda: make("static", task="detection"), "task: expected one of classification, segmentation"),
        (lambda: build_model("static", {}, 2), "encoders: expected 1 to 16"),
        (lambda: build_model("static", {"a": nn.ReLU()}, 2), r"encoders\['a'\].*give width=C"),
        (lambda: build_model("static", {"a": nn.ReLU()}, 2, width={"b": 2}), "width: expected the names a, got b"),
        (lambda: model({"m0": inputs["m0"], "rgb": inputs["m1"]}), "inputs: expected the names m0, m1, got m0, rgb"),
        (lambda: model({**inputs, "m1": inputs["m1"][:2]}), r"inputs\['m1'\]: expected 6 samples"),
        (lambda: model(inputs, present=torch.ones(BATCH, 3).bool()), r"present: expected shape \(6, 2\)"),
        (lambda: model(inputs, sigma=torch.ones(BATCH)), r"sigma: expected shape \(6, 2\)"),
        (lambda: model(inputs, sigma=-torch.ones(BATCH, 2)), "sigma: expected levels that are not negative, got -1.0"),
        (lambda: model.check(inputs, target + CLASSES), r"target: expected labels in \[0, 5\), got 5"),
        (lambda: model.check(inputs, target.float()), "target: expected int64 of 1 dimension, 6 samples"),
        (lambda: make("oracle")(inputs), "sigma: expected the true levels"),
        (lambda: make("udml", width=4)(inputs), r"expected features \(B, 4, ...\), got shape \(6, 8, 4, 3\)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="present: expected a bool tensor"):
        model(inputs, present=torch.ones(BATCH, 2))
    with pytest.raises(TypeError, match="inputs: expected tensors by modality name, got list"):
        model(list(inputs.values()))
    model.check(inputs, target)
    scenes = make("static", task="segmentation")
    scenes.check(*batch_for(scenes)[:2])


def test_segmentation_needs_maps_of_one_size():
    encoders = {"a": image_encoder(), "b": nn.Sequential(image_encoder(), nn.AvgPool2d(2))}
    model = build_model("static", encoders, CLASSES, task="segmentation")
    with pytest.raises(ValueError, match=r"one size \(h, w\) in segmentation, got a \(4, 3\), b \(2, 1\)"):
        model({name: torch.randn(2, 2, 8, 6) for name in encoders})


def test_widths_are_read_from_the_encoders():
    own = nn.Identity()
    own.out_features = 3
    encoders = {"a": own, "b": nn.Sequential(nn.Linear(4, 7), nn.LayerNorm(7), nn.ReLU()), "c": nn.Identity()}
    model = UDML(encoders, CLASSES, width={"c": 2})
    assert model.widths == {"a": 3, "b": 7, "c": 2} and model.width == 7
    output = model({"a": torch.randn(4, 3), "b": torch.randn(4, 4), "c": torch.randn(4, 2)}, seed=torch.tensor([1]))
    assert output.logits.shape == (4, CLASSES)


def test_options_of_other_methods_are_left_out_and_none_is_the_default():
    model = make("static", temperature=3.0, momentum=0.5, gamma=None)
    assert model.loss_weights.unimodal == 1.0
    assert make("udml", temperature=3.0, floor=None).settings.temperature == 3.0
    assert METHODS["static-clean"].noisy_training is False and METHODS["static"].noisy_training
