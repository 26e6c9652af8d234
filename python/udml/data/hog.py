"""Handwritten digits in four views that learn unequally: histograms of oriented gradients of 5,000 MNIST digits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..encoders import MLPEncoder, TanhEncoder
from ..layers.noise import Noise
from .base import Batch, DataSpec
from .files import fail, installed_file
from .sets import MultimodalData, TensorSet
from .splits import split_vectors

PACKAGE = "scikit-multimodallearn==0.1.0"
FILE = "data/multiview_mnist.hdf5"
VIEWS = ("hog0", "hog1", "hog2", "hog3")
SAMPLES, FEATURES, CLASSES = 5000, 192, 10
SIGMA_UNIT = 0.25
# What makes the last view slow, and how much smaller its inputs are with "scale".
SLOW = ("encoder", "scale", "none")
SCALE = 0.05


def read_views(views: Sequence[str], path: Path | None = None) -> Batch:
    """All 5,000 digits as they are in the file, (5000, 192) per view.

    Raises:
        DataError: naming the file and what was expected.
        ImportError: without h5py.
    """
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("The hog data is read with h5py: pip install h5py") from error
    path = installed_file(FILE, PACKAGE) if path is None else path
    try:
        with h5py.File(path) as file:
            target = np.asarray(file["Labels"]).astype(np.int64)
            inputs = {view: np.asarray(file[f"View{VIEWS.index(view)}"]).astype(np.float32) for view in views}
    except (OSError, KeyError) as error:
        fail(path, "an HDF5 file with Labels and View0 to View3", error, error)
    for view, x in inputs.items():
        if x.shape != (SAMPLES, FEATURES) or not np.isfinite(x).all():
            fail(path, f"{SAMPLES} rows of {FEATURES} finite features in View{VIEWS.index(view)}", f"shape {x.shape}")
    if target.shape != (SAMPLES,) or not np.array_equal(np.unique(target), np.arange(CLASSES)):
        fail(path, f"{SAMPLES} digits 0 to 9 in Labels", f"shape {target.shape}")
    tensors = {view: torch.from_numpy(x) for view, x in inputs.items()}
    return Batch(tensors, torch.from_numpy(target), torch.arange(SAMPLES, device="cpu"))


def load_hog(
    root: Path | str | None = None, *, seed: int = 0, views: Sequence[str] = VIEWS, slow: str = "encoder"
) -> MultimodalData:
    """The digits, 2,250 for training, 750 for validation and 2,000 for testing, a modality (B, 192) for each view.

    Args:
        root: the file or its folder; None for the installed package's.
        seed: chooses the validation digits among those that are not test digits.
        views: 2 to 4 of hog0 to hog3, in the order of the modalities.
        slow: what makes the last of the views learn slowly: "encoder", six layers without normalisation
            (`TanhEncoder`); "scale", inputs and noise 0.05 times as large; or "none".

    Raises:
        ValueError: for invalid views or another `slow`.
        DataError: naming the file and what was expected.
        ImportError: without h5py.
    """
    views = tuple(views)
    if not 2 <= len(views) <= len(VIEWS) or len(set(views)) < len(views) or not set(views) <= set(VIEWS):
        got = ", ".join(map(str, views))
        raise ValueError(f"views: expected 2 to {len(VIEWS)} different ones of {', '.join(VIEWS)}, got {got}")
    if slow not in SLOW:
        raise ValueError(f"slow: expected one of {', '.join(SLOW)}, got {slow!r}")
    path = None if root is None else Path(root)
    batch = read_views(views, path / Path(FILE).name if path is not None and path.is_dir() else path)
    parts, last, noise = split_vectors(batch, seed), views[-1], dict.fromkeys(views, Noise(SIGMA_UNIT))
    if slow == "scale":
        noise[last] = Noise(SIGMA_UNIT * SCALE)
        for part in parts.values():
            part.inputs[last] *= SCALE
    spec = DataSpec("hog", views, tuple(map(str, range(CLASSES))), "classification", noise)

    def encoders(width: int):
        made: dict = {view: MLPEncoder(FEATURES, width) for view in views}
        return made | {last: TanhEncoder(FEATURES, width)} if slow == "encoder" else made

    return MultimodalData(spec, **{name: TensorSet(part) for name, part in parts.items()}, make_encoders=encoders)
