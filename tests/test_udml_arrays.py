"""Arrays of the user's own become data sets. Needs the train extra."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset
from udml import UDML
from udml.data import Batch, DataError, DataSpec, MultimodalData, TensorSet
from udml.encoders import MLPEncoder, SegmentationEncoder
from udml.layers import Noise
from udml.models import build_model
from udml.training import evaluate, train

from .udml_runs import TINY, assert_same, make_arrays

SHORT = replace(TINY, epochs=3)
NAMES = ("ear", "eye")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return MultimodalData.from_arrays(make_arrays())


def test_arrays_become_a_data_set(data):
    inputs, target = make_arrays()
    assert data.spec.modalities == NAMES and data.spec.classes == ("0", "1", "2")
    assert [len(part) for part in data.splits.values()] == [78, 18, 24]
    parts = [part.batch for part in data.splits.values()]
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(120))
    for part in parts:
        assert part.target.bincount().tolist() == [len(part) // 3] * 3
        assert torch.equal(part.target, torch.from_numpy(target)[part.index])
        assert torch.equal(part.inputs["ear"], torch.from_numpy(inputs["ear"]).float()[part.index])
        assert torch.equal(part.inputs["eye"], torch.from_numpy(inputs["eye"])[part.index])
    values = parts[0].inputs["eye"].double() / 255
    noise = data.spec.noise
    assert noise["ear"].unit == pytest.approx(parts[0].inputs["ear"].std(correction=0).item() / 4, rel=1e-5)
    assert noise["eye"].normalize == pytest.approx((255, values.mean().item(), values.std(correction=0).item()))
    assert (noise["eye"].power, noise["eye"].clamp) == (2, (0, 255))
    # Another seed, other samples that validate; the same that test.
    other = MultimodalData.from_arrays(make_arrays(), seed=1)
    assert torch.equal(other.test.batch.index, parts[2].index)
    assert not torch.equal(other.validation.batch.index, parts[1].index)


@pytest.mark.parametrize(
    "form",
    [
        *("lists", "tensors", "tensor sets", "random split", "batch"),
        *("reversed", "read-only", "big-endian", "int32 labels", "bool labels"),
    ],
)
def test_every_form_of_an_array_is_taken(form):
    inputs, target = make_arrays()
    target = target % 2 if form == "bool labels" else target
    expected = MultimodalData.from_arrays((inputs, target))
    modalities = None
    if form == "lists":
        given, modalities = ([inputs["ear"].tolist(), inputs["eye"]], target.tolist()), list(NAMES)
    elif form in ("tensors", "batch"):
        tensors = {"ear": torch.from_numpy(inputs["ear"]).requires_grad_(), "eye": torch.from_numpy(inputs["eye"])}
        given = tensors, torch.from_numpy(target)
        given = Batch(*given, torch.arange(120)) if form == "batch" else given
    elif form == "tensor sets":
        given = TensorDataset(*map(torch.from_numpy, inputs.values()), torch.from_numpy(target))
        modalities = list(NAMES)
    elif form == "random split":
        whole = TensorDataset(*map(torch.from_numpy, inputs.values()), torch.from_numpy(target))
        given, modalities = Subset(whole, range(120)), NAMES
    elif form == "reversed":
        given = {name: x[::-1].copy()[::-1] for name, x in inputs.items()}, target[::-1].copy()[::-1]
    elif form == "read-only":
        for x in (*inputs.values(), target):
            x.flags.writeable = False
        given = inputs, target
    elif form == "big-endian":
        given = {"ear": inputs["ear"].astype(">f8"), "eye": inputs["eye"]}, target.astype(">i4")
    else:
        given = inputs, target.astype(np.int32 if form == "int32 labels" else bool)
    found = MultimodalData.from_arrays(given, modalities=modalities)
    assert found.spec == expected.spec
    for name, part in expected.splits.items():
        assert_same(vars(found.splits[name].batch), vars(part.batch))


def test_parts_of_its_own(data):
    inputs, target = make_arrays()

    def rows(*limits):
        here = np.ones((limits[1] - limits[0], 2), bool)
        here[0, 1] = False
        return {name: x[slice(*limits)] for name, x in inputs.items()}, target[slice(*limits)], here

    options = {"classes": ["a", "b", "c", "d"], "noise": {"ear": 0.5, "eye": Noise(3.0)}, "name": "mine"}
    found = MultimodalData.from_arrays(rows(0, 70), rows(70, 90), rows(90, 120), **options)
    assert [part.batch.index.tolist()[0] for part in found.splits.values()] == [0, 70, 90]
    assert found.spec.classes == ("a", "b", "c", "d") and found.spec.noise == {"ear": Noise(0.5), "eye": Noise(3.0)}
    assert all(part.batch.present.sum() == 2 * len(part) - 1 for part in found.splits.values())
    # What stands where a modality is missing is not looked at.
    gone, labels, here = rows(0, 70)
    gone["ear"][3], here[3, 0] = np.nan, False
    noise = MultimodalData.from_arrays((gone, labels, here), rows(70, 90), rows(90, 120)).spec.noise["ear"]
    assert np.isfinite(noise.unit)
    with pytest.raises(DataError, match="own, train: expected finite values of ear, got NaN"):
        MultimodalData.from_arrays((gone, labels), rows(70, 90), rows(90, 120))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"train": 3}, TypeError, r"train: expected \(inputs, target\), .*, got int"),
        ({"train": ({"ear": np.zeros((9, 2))}, np.zeros(9))}, TypeError, "train, target: expected .* integers"),
        ({"train": ({"ear": np.zeros((9, 2))}, np.zeros(8, int))}, ValueError, r"train\['ear'\]: expected 8 samples"),
        ({"train": ({"ear": [[1], [2, 3]]}, [0, 1])}, TypeError, r"train\['ear'\]: expected an array, got 2 of them"),
        ({"train": ({"ear": np.array(["a"])}, [0])}, TypeError, r"train\['ear'\]: expected .* numbers, .*, got <U1"),
        ({"train": ([np.zeros((9, 2))], [0] * 9)}, ValueError, "modalities: expected the names of the inputs"),
        (
            {"train": (*make_arrays(), np.ones((120, 1), bool))},
            ValueError,
            r"train, present: expected shape \(120, 2\)",
        ),
        ({"train": (*make_arrays(), np.ones((120, 2)))}, TypeError, "train, present: expected an array of bools"),
        (
            {"train": ({"ear": np.zeros((0, 2))}, np.zeros(0, int))},
            DataError,
            "own, train: expected at least one sample",
        ),
        ({"modalities": "ear"}, TypeError, "modalities: expected 1 to 16 names, got 'ear'"),
        ({"modalities": ["ear", "nose"]}, ValueError, "train: expected inputs ear, nose, got ear, eye"),
        ({"noise": {"nose": 1.0}}, ValueError, "noise: expected some of ear, eye, got nose"),
        ({"validation": 1.5}, ValueError, "validation: expected a fraction between 0 and 1, or samples .*, got 1.5"),
        ({"test": True}, ValueError, "test: expected a fraction between 0 and 1, or samples as train, got True"),
        ({"classes": 2}, DataError, r"own, train: expected labels in \[0, 2\), got 2"),
        ({"encoders": {}}, TypeError, "make_encoders: expected a function of the width, got dict"),
    ],
)
def test_wrong_arrays_are_named(change, error, message):
    with pytest.raises(error, match=f"^{message}"):
        MultimodalData.from_arrays(**{"train": make_arrays(), **change})


def test_tensor_datasets_are_splits():
    inputs, target = make_arrays()
    whole = TensorDataset(*(torch.from_numpy(x) for x in (*inputs.values(), target)))
    spec = DataSpec("mine", list(NAMES), ["a", "b", "c"], "classification", dict.fromkeys(NAMES, Noise()))
    parts = Subset(whole, range(80)), Subset(Subset(whole, range(80, 120)), range(0, 40, 2)), whole
    data = MultimodalData(spec, *parts)
    assert [part.batch.index.tolist()[0] for part in data.splits.values()] == [0, 80, 100]
    assert torch.equal(data.validation.batch.target, torch.from_numpy(target[80:120:2]))
    assert torch.equal(data.test.batch.inputs["eye"], torch.from_numpy(inputs["eye"]))
    model = build_model("udml", {"ear": MLPEncoder(6, 8), "eye": SegmentationEncoder(3, 8)}, 3)
    expected = evaluate(model, data.test, spec)
    subset = TensorDataset(*(x[:7] for x in whole.tensors))
    torch.testing.assert_close(evaluate(model, subset, spec).logits, expected.logits[:7])
    with pytest.raises(ValueError, match=r"mine, train: expected inputs ear, eye, got 1 of them"):
        MultimodalData(spec, TensorDataset(*whole.tensors[1:]), whole, whole)
    with pytest.raises(TypeError, match="mine, test: expected a data set of Batches or a TensorDataset, got generator"):
        MultimodalData(spec, whole, whole, (x for x in whole))
    with pytest.raises(DataError, match="mine, test: expected a Batch, got tuple"):
        MultimodalData(spec, whole, whole, list(whole))
    with pytest.raises(ValueError, match="encoders: expected them, or a model, as mine has none of its own"):
        train(SHORT, data, progress=False)


@pytest.mark.parametrize(
    "names, error, message",
    [
        (("ear.left", "eye"), ValueError, "expected names without dots, .*, got 'ear.left'"),
        (("type", "eye"), ValueError, "expected names without dots, .*, got 'type'"),
        (("", "eye"), ValueError, "expected names without dots, .*, got ''"),
        ((3, "eye"), TypeError, "expected names that are strings, got 3"),
    ],
)
def test_names_that_no_module_has_are_refused_where_they_come_in(names, error, message):
    noise = dict.fromkeys(names, Noise())
    with pytest.raises(error, match=f"^modalities: {message}"):
        DataSpec("mine", names, ("a",), "classification", noise)
    with pytest.raises(error, match=f"^encoders: {message}"):
        build_model("static", {name: MLPEncoder(3, 4) for name in names}, 2)


def test_arrays_in_a_batch_are_named():
    spec = DataSpec("mine", ["ear"], ["a"], "classification", {"ear": Noise()})
    batch = Batch({"ear": np.zeros((3, 2), np.float32)}, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    with pytest.raises(DataError, match=r"^here: expected ear as a tensor \(MultimodalData.from_arrays takes arrays\)"):
        spec.check(batch, "here")
    with pytest.raises(TypeError, match=r"^batch: expected a Batch, got dict"):
        TensorSet({})
    with pytest.raises(TypeError, match=r"^noise\['ear'\]: expected a Noise, got 0.5"):
        replace(spec, noise={"ear": 0.5})
    with pytest.raises(TypeError, match=r"^classes: expected a list of names, one a class, got 3"):
        replace(spec, classes=3)


def test_runs_take_what_they_are_given(data):
    for wrong, message in (
        ({"data": data.train}, "data: expected a MultimodalData, got TensorSet"),
        ({"model": nn.Linear(2, 2)}, "model: expected a MultimodalModel, or a function that builds one, got Linear"),
        ({"encoders": 3}, "encoders: expected modules by modality name, got int"),
        ({"encoders": {"ear": 1, "eye": 2}}, r"encoders\['ear'\]: expected a module, got int"),
    ):
        with pytest.raises(TypeError, match=message):
            train(SHORT, **{"data": data, **wrong}, progress=False)
    with pytest.raises(ValueError, match="encoders: expected None where a model is given"):
        train(SHORT, data, data.encoders(8), model=UDML(data.encoders(8), 3), progress=False)
    with pytest.raises(ValueError, match=r"temperature: expected None or 5.0, as the model was built, got 2.0"):
        train(replace(SHORT, temperature=2.0), data, model=UDML(data.encoders(8), 3, temperature=5.0), progress=False)
    alone = replace(data, train=TensorSet(data.train.batch.select([0])))
    with pytest.raises(ValueError, match="data: expected at least 2 samples to train on, got 1"):
        train(SHORT, alone, progress=False)
