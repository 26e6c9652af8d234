"""Evaluation under noise. Needs the train extra."""

from dataclasses import replace

import pytest
import torch
from udml.data import DataError, MultimodalData, TensorSet
from udml.layers import NoiseInjector
from udml.models import METHODS, build_model
from udml.training import TrainConfig, evaluate, train

import udml_kernels

from .udml_runs import TINY, make_data, make_scenes

pytestmark = pytest.mark.usefixtures("one_thread")


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


def by_hand(model, batch, spec, present):
    """The model's own answers on clean data, a modality alone scored where it is present."""
    inject = NoiseInjector([spec.noise[name] for name in spec.modalities])
    size, names = len(batch), spec.modalities
    clean = inject([batch.inputs[name] for name in names], torch.zeros(size, len(names)), seed=torch.tensor([1]))
    with torch.no_grad():
        out = model.eval()(dict(zip(names, clean, strict=True)), sigma=torch.zeros(size, len(names)), present=present)
    here = torch.ones(size, len(names), dtype=torch.bool) if present is None else present
    right = out.unimodal.argmax(2) == batch.target
    return out, {name: right[m][here[:, m]].float().mean().item() for m, name in enumerate(names)}


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_tells_what_each_modality_does(data, method):
    model, batch = build_model(method, data.encoders(8), 3), data.test.batch
    names = data.spec.modalities
    some = torch.arange(40)[:, None] % torch.tensor([3, 5]) > 0
    forms = {
        "none": (None, None),
        "names": (["eye"], torch.tensor([False, True])),
        "bools": ([False, True], torch.tensor([False, True])),
        "rows": (some, some),
    }
    for given, mask in forms.values():
        present = None if mask is None else mask.expand(40, 2)
        out, alone = by_hand(model, batch, data.spec, present)
        for size in (40, 7):
            found = evaluate(model, data.test, data.spec, present=given, batch_size=size)
            torch.testing.assert_close(found.logits, out.logits, rtol=1e-4, atol=1e-5)
            assert found.accuracy == found.score == (out.logits.argmax(1) == batch.target).float().mean().item()
            assert found.unimodal == pytest.approx(alone, nan_ok=True) and list(found.unimodal) == list(names)
            assert found.mean_weights == pytest.approx(dict(zip(names, out.weights.mean(0).tolist(), strict=True)))
            if out.dependency is None:
                assert found.dependency is None
            else:
                assert found.dependency == pytest.approx(dict(zip(names, out.dependency.tolist(), strict=True)))
    # What the data lack is missing too.
    gaps = TensorSet(replace(batch, present=some))
    both = evaluate(model, gaps, data.spec, present=["ear"])
    expected = evaluate(model, data.test, data.spec, present=some & torch.tensor([True, False]))
    assert torch.equal(both.logits, expected.logits) and torch.isnan(torch.tensor(both.unimodal["eye"]))


def test_segmentation_is_scored_for_each_modality():
    scenes = make_scenes()
    model = train(TrainConfig(epochs=3, batch_size=4, width=8, device="cpu"), scenes, progress=False).model
    whole = evaluate(model, scenes.test, scenes.spec, batch_size=4)
    alone = evaluate(model, scenes.test, scenes.spec, present=["rgb"])
    assert set(whole.unimodal) == {"rgb", "depth"} and all(0 <= score <= 1 for score in whole.unimodal.values())
    assert alone.unimodal["rgb"] == pytest.approx(whole.unimodal["rgb"])
    assert alone.mean_weights["depth"] == 0 and alone.score != whole.score
    alpha = model.dependency.alpha.tolist()
    assert whole.dependency == pytest.approx({"rgb": alpha[0], "depth": alpha[1]})
    with pytest.raises(AttributeError, match="accuracy: segmentation has a score"):
        whole.accuracy  # noqa: B018
    void = TensorSet(replace(scenes.test.batch, target=torch.full_like(scenes.test.batch.target, 255)))
    with pytest.raises(DataError, match="scenes: expected at least one pixel with a class"):
        evaluate(model, void, scenes.spec)


@pytest.mark.parametrize(
    "present, error, got",
    [
        ("ear", TypeError, "got 'ear'"),
        (["nose"], ValueError, "got nose"),
        ([True], ValueError, r"got torch.bool of shape \(1,\)"),
        ([0, 1], ValueError, r"got torch.int64 of shape \(2,\)"),
        (torch.ones(39, 2, dtype=torch.bool), ValueError, r"got torch.bool of shape \(39, 2\)"),
    ],
)
def test_present_is_checked(data, present, error, got):
    model = build_model("static", data.encoders(8), 3)
    with pytest.raises(error, match=rf"^present: expected some of ear, eye, or bools .* \(2,\) or \(40, 2\), {got}"):
        evaluate(model, data.test, data.spec, present=present)


@pytest.mark.parametrize("sigma", ["loud", (1.0, 2.0, 3.0), torch.zeros(3, 2)])
def test_levels_of_another_shape_are_refused(data, sigma):
    model = build_model("static", data.encoders(8), 3)
    with pytest.raises(ValueError, match="sigma: expected 'mix', a number, or shape"):
        evaluate(model, data.test, data.spec, sigma)
