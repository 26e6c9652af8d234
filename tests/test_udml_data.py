"""What all data sets have in common. Needs the data packages and Pillow."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from udml.data import DATASETS, Batch, DataError, DataSpec, MultimodalData, TensorSet, load_data
from udml.data.splits import hold_out, hold_out_per_class
from udml.layers.noise import Noise, NoiseInjector

from . import folders


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in folders.WRITERS.items()}


def tiny_batch(**changes) -> Batch:
    values = {"inputs": {"a": torch.zeros(3, 2), "b": torch.zeros(3, 4)}, "target": torch.tensor([0, 1, 1])}
    return Batch(**{**values, "index": torch.arange(3), **changes})


TINY = DataSpec("tiny", ("a", "b"), ("no", "yes"), "classification", {"a": Noise(), "b": Noise()})


# Batches and their description.


@given(st.lists(st.integers(0, 2), max_size=5))
def test_selected_rows_are_those_of_every_tensor(rows):
    batch = tiny_batch(inputs={"a": torch.arange(6.0).reshape(3, 2)}, present=torch.eye(3, dtype=torch.bool))
    picked = batch.select(rows)
    assert len(picked) == len(rows) and picked.index.tolist() == rows
    for i, row in enumerate(rows):
        assert torch.equal(picked.inputs["a"][i], batch.inputs["a"][row])
        assert picked.target[i] == batch.target[row] and torch.equal(picked.present[i], batch.present[row])
    mask = torch.tensor([True, False, True])
    assert batch.select(mask).index.tolist() == [0, 2]
    assert batch.to("cpu").index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": {"a": torch.zeros(3, 2)}}, "expected the modalities a, b, got a"),
        ({"inputs": {"a": torch.zeros(3, 2), "b": torch.zeros(2, 4)}}, "expected 3 samples of b, as many as targets"),
        ({"inputs": {"a": torch.zeros(3, 2), "b": torch.zeros(3, 4).double()}}, "expected b in float32 or uint8"),
        ({"inputs": {"a": torch.full((3, 2), math.nan), "b": torch.zeros(3, 4)}}, "expected finite values of a"),
        ({"target": torch.tensor([0, 2, -1])}, r"expected labels in \[0, 2\), got -1, 2"),
        ({"target": torch.tensor([0, 255, 1])}, r"expected labels in \[0, 2\), got 255"),
        ({"target": torch.zeros(3)}, "expected labels of int64, got torch.float32"),
        ({"target": torch.zeros(3, 2, 2).long()}, r"expected a target of 1 dimensions, got \(3, 2, 2\)"),
        ({"index": torch.arange(2)}, r"expected an index \(3,\) of int64, got \(2,\)"),
        ({"present": torch.ones(3, 1, dtype=torch.bool)}, r"expected present \(3, 2\) of bool, got \(3, 1\)"),
    ],
)
def test_a_batch_of_another_kind_is_refused(changes, message):
    TINY.check(tiny_batch(), "here")
    with pytest.raises(DataError, match=f"^here: {message}"):
        TINY.check(tiny_batch(**changes), "here")


def test_a_split_is_checked_before_anything_is_trained():
    full = TensorSet(tiny_batch())
    MultimodalData(TINY, full, full, full, dict)
    empty = TensorSet(tiny_batch().select([]))
    with pytest.raises(DataError, match=r"^tiny, validation: expected at least one sample, got none"):
        MultimodalData(TINY, full, empty, full, dict)
    wrong = TensorSet(tiny_batch(target=torch.tensor([0, 1, 2])))
    with pytest.raises(DataError, match=r"^tiny, test: expected labels in \[0, 2\), got 2"):
        MultimodalData(TINY, full, full, wrong, dict)


def test_segmentation_ignores_255_alone():
    spec = DataSpec("seg", ("a", "b"), ("no", "yes"), "segmentation", TINY.noise)
    spec.check(tiny_batch(target=torch.tensor([0, 1, 255]).reshape(3, 1, 1)), "here")
    with pytest.raises(DataError, match="got 254"):
        spec.check(tiny_batch(target=torch.tensor([0, 1, 254]).reshape(3, 1, 1)), "here")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_split_has_a_pixel_with_a_class(place):
    spec = DataSpec("seg", ("a", "b"), ("no", "yes"), "segmentation", TINY.noise)
    full, void = (TensorSet(tiny_batch(target=torch.full((3, 2, 2), label))) for label in (1, 255))
    parts = [full, full, full]
    MultimodalData(spec, *parts, dict)
    parts[place] = void
    split = ("train", "validation", "test")[place]
    with pytest.raises(DataError, match=f"^seg, {split}: expected at least one pixel with a class, got 255"):
        MultimodalData(spec, *parts, dict)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "regression"}, "task: expected one of classification, segmentation, got 'regression'"),
        ({"modalities": ()}, "modalities: expected 1 to 16 names, got 0"),
        ({"noise": {"a": Noise()}}, "noise: expected the keys a, b, got a"),
    ],
)
def test_a_description_is_checked(change, message):
    values = {"name": "t", "modalities": ("a", "b"), "classes": ("c",), "task": "classification", "noise": TINY.noise}
    with pytest.raises(ValueError, match=message):
        DataSpec(**{**values, **change})


def test_sets_in_memory_fetch_whole_batches():
    data = TensorSet(tiny_batch())
    assert [len(item) for item in data] == [1, 1, 1], "iteration ends"
    assert data[-1].index.tolist() == [2]
    with pytest.raises(IndexError):
        data[3]
    loader = DataLoader(data, batch_size=2, collate_fn=lambda batch: batch)
    assert [batch.index.tolist() for batch in loader] == [[0, 1], [2]]


# The registry.


def test_unknown_names_and_options_list_the_choices(written):
    with pytest.raises(
        ValueError, match="name: expected one of watch, digits, hog, cremad, kinetics-sound, nyud, got 'mnist'"
    ):
        load_data("mnist")
    with pytest.raises(ValueError, match="colour: digits has no such option; expected one of seed, views"):
        load_data("digits", colour=1)
    assert len(load_data("watch", views=None, seed=4).test) == 773, "None leaves an option out"
    for name in folders.WRITERS:
        with pytest.raises(ValueError, match=f"root: expected the folder of {name}"):
            load_data(name)
        with pytest.raises(DataError, match=f"nowhere: expected the folder of {name}, got nothing there"):
            load_data(name, written[name] / "nowhere")


@pytest.mark.parametrize("name", DATASETS)
def test_every_set_is_as_it_says(name, written):
    data = folders.load_small(name, written[name], validation=0.3) if name in folders.WRITERS else load_data(name)
    spec, indices = data.spec, []
    for split in data.splits.values():
        assert len(split) > 0
        rows = [len(split) - 1, 0]
        batch = split.__getitems__(rows)
        spec.check(batch, name)
        for position, row in enumerate(rows):
            alone = split[row]
            assert len(alone) == 1
            for key in spec.modalities:
                assert torch.equal(alone.inputs[key][0], batch.inputs[key][position])
        indices += (split.batch.index if isinstance(split, TensorSet) else split.index).tolist()
    assert sorted(indices) == list(range(len(indices))), "every sample has an index of its own"
    encoders = data.encoders(8)
    assert list(encoders) == list(spec.modalities)
    clean = NoiseInjector([spec.noise[m] for m in spec.modalities])(
        [batch.inputs[m] for m in spec.modalities], torch.zeros(2, len(spec.modalities)), seed=torch.tensor([1])
    )
    for key, x in zip(spec.modalities, clean, strict=True):
        features = encoders[key](x)
        assert features.shape[:2] == (2, 8) and encoders[key].out_features == 8 and features.isfinite().all()


# Splits.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(-(2**63), 2**63 - 1))
def test_groups_are_held_out_whole(groups, fraction, seed):
    held = hold_out(groups, fraction, seed)
    inside, outside = ({g for g, h in zip(groups, held.tolist(), strict=True) if h is side} for side in (True, False))
    assert not inside & outside
    if len(set(groups)) > 1:
        assert inside and outside and abs(len(inside) - fraction * len(set(groups))) <= 1
    assert torch.equal(held, hold_out(groups, fraction, seed))
    assert hold_out(groups[::-1], fraction, seed).tolist() == held.tolist()[::-1], (
        "the order of samples does not matter"
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_every_class_gives_its_fraction(labels, fraction, seed):
    labels = torch.tensor(labels)
    held = hold_out_per_class(labels, fraction, seed)
    for label in labels.unique():
        chosen, count = int(held[labels == label].sum()), int((labels == label).sum())
        assert abs(chosen - fraction * count) <= 1 and (count == 1 or 0 < chosen < count)


def test_another_seed_chooses_others():
    labels = torch.zeros(200).long()
    first, second = (hold_out_per_class(labels, 0.5, seed) for seed in (0, 1))
    assert 20 < int((first != second).sum()) < 180
    with pytest.raises(TypeError, match=r"seed: expected an integer, got 1\.5"):
        hold_out_per_class(labels, 0.5, 1.5)
    for fraction in (0, 1, "half"):
        with pytest.raises(ValueError, match="validation: expected a fraction between 0 and 1"):
            hold_out_per_class(labels, fraction, 0)


# The documentation.


def test_every_option_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    for name, load in DATASETS.items():
        for option in inspect.signature(load).parameters:
            assert f"`{option}`" in text, f"{name}'s option {option} is documented"
