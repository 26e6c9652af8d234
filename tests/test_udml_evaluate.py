"""Evaluation under noise. Needs the train extra."""

from dataclasses import replace

import pytest
import torch
from udml.data import MultimodalData
from udml.models import build_model
from udml.training import evaluate, train

import udml_kernels

from .udml_runs import TINY, make_data, single_thread


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return make_data()


def test_evaluation_does_not_depend_on_the_batch(data):
    model = train(replace(TINY, epochs=3), data, progress=False).model.train()
    with udml_kernels.use_backend("reference"):
        for sigma in (0.0, 4.0, (0.0, 8.0), "mix"):
            whole = evaluate(model, data.test, data.spec, sigma)
            parts = evaluate(model, data.test, data.spec, sigma, batch_size=3)
            for name in ("logits", "weights", "noise", "sigma", "target"):
                torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
            assert parts.score == whole.score == (whole.logits.argmax(1) == whole.target).float().mean().item()
            again = evaluate(model, data.test, data.spec, whole.sigma)
            assert torch.equal(again.logits, whole.logits)
    assert model.training and whole.weights.shape == whole.noise.shape == (40, 2)
    assert evaluate(model, data.test, data.spec, (0.0, 8.0)).sigma.unique(dim=0).tolist() == [[0.0, 8.0]]
    assert not torch.equal(evaluate(model, data.test, data.spec, "mix", draw=1).logits, whole.logits)
    kinds = [evaluate(model, data.test, data.spec, 4.0, kind=kind).logits for kind in ("gaussian", "uniform")]
    assert not torch.equal(*kinds)
    mixed = torch.full((40, 2), udml_kernels.KINDS.index("uniform"))
    torch.testing.assert_close(evaluate(model, data.test, data.spec, 4.0, kind=mixed, batch_size=9).logits, kinds[1])


def test_every_model_meets_the_same_noise(data):
    seen = []
    for method in ("udml", "qmf"):
        model = train(replace(TINY, method=method, epochs=3), data, progress=False).model
        model.encoders["eye"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        evaluate(model, data.test, data.spec, "mix")
    assert torch.equal(*seen)


@pytest.mark.parametrize("sigma", ["loud", (1.0, 2.0, 3.0), torch.zeros(3, 2)])
def test_levels_of_another_shape_are_refused(data, sigma):
    model = build_model("static", data.encoders(8), 3)
    with pytest.raises(ValueError, match="sigma: expected 'mix', a number, or shape"):
        evaluate(model, data.test, data.spec, sigma)
