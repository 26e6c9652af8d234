"""A batch of no samples gives logits of none, as the ops and layers do, and moves nothing."""

import pytest
import torch
from torch import nn
from udml.encoders import ConvEncoder1d, Framewise, MLPEncoder
from udml.fusion import FUSIONS
from udml.models import METHODS, MultimodalModel, build_model

WIDTH, CLASSES = 8, 5


def image_encoder() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, WIDTH, 3, stride=2, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())


def step(model: MultimodalModel, inputs, target, given):
    output = model(inputs, seed=torch.tensor([1]), **given)
    terms = model.loss(output, target)
    sum(terms.values()).backward()
    model.after_backward(output, target, seed=torch.tensor([1]))
    return output, terms


@pytest.mark.parametrize("given", ["nothing", "sigma", "present"])
@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("method", [*METHODS, "authors"])
def test_empty_batch(method, fusion, task, given):
    preset = {"preset": "authors"} if method == "authors" else {}
    encoders = {name: image_encoder() for name in ("a", "b")}
    model = build_model("udml" if preset else method, encoders, CLASSES, fusion=fusion, task=task, **preset)
    large, small = ((8, 6), (4, 3)) if task == "segmentation" else ((), ())
    inputs, target = {name: torch.randn(0, 2, 8, 6) for name in encoders}, torch.zeros(0, *large, dtype=torch.int64)
    options = {} if given == "nothing" and method != "oracle" else {"sigma": torch.rand(0, 2)}
    options |= {"present": torch.ones(0, 2, dtype=torch.bool)} if given == "present" else {}
    # Greedy's clock counts steps, also those without samples.
    before = {name: value.clone() for name, value in model.named_buffers() if name != "clock"}
    output, terms = step(model, inputs, target, options)
    assert all(term.isfinite() for term in terms.values()), terms
    answer = model.eval()(inputs, **options)
    for found in (output, answer):
        assert found.logits.shape == (0, CLASSES, *large) and found.unimodal.shape == (2, 0, CLASSES, *small)
        assert found.weights.shape in ((0, 2), (0, 2, *small))
    for name, p in model.named_parameters():
        assert p.grad is None or p.grad.isfinite().all(), name
    after = dict(model.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_empty_batches_of_any_dimensions():
    encoders = {
        "vector": MLPEncoder(7, WIDTH),
        "signal": ConvEncoder1d(3, WIDTH),
        "frames": Framewise(image_encoder(), WIDTH),
    }
    model = build_model("udml", encoders, CLASSES).eval()
    inputs = {"vector": torch.randn(0, 7), "signal": torch.randn(0, 3, 32), "frames": torch.randn(0, 2, 3, 8, 6)}
    assert model(inputs).logits.shape == (0, CLASSES)
