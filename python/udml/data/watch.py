"""The watch data: seven shoulder exercises of ten people, from an accelerometer and a gyroscope at 50 Hz."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders import ConvEncoder1d
from ..layers.noise import Noise
from .base import Batch, DataError, DataSpec
from .files import installed_file
from .sets import MultimodalData, TensorSet

PACKAGE = "seglearn==1.2.5"
FILE = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WINDOW, STRIDE = 128, 64
MODALITIES = {"accelerometer": slice(0, 3), "gyroscope": slice(3, 6)}
SUBJECTS = {"train": (1, 2, 3, 4, 5, 6), "validation": (7, 8), "test": (9, 10)}
# One sigma is this many standard deviations of the training signal: at sigma = 4 noise and signal are equally strong.
SIGMA_UNIT = 0.25


@dataclass
class Windows:
    """All windows of the recordings, in the sensors' units.

    Attributes:
        batch: the windows (N, 3, 128) of each sensor.
        subject: int64 (N,), the person, 1 to 10.
        classes: the names of the exercises.
    """

    batch: Batch
    subject: Tensor
    classes: tuple[str, ...]


def watch_file() -> Path:
    """The path of the data in the installed package; the package is not imported.

    Raises:
        DataError: if it is not installed.
    """
    return installed_file(FILE, PACKAGE)


def read_recordings(path: Path) -> dict:
    """The file's dictionary: X (a list of (T, 6) arrays), y, subject, y_labels.

    Raises:
        DataError: if the file cannot be read, or is not the one published with the package. It is a
            pickle, which may run code, so it is not unpickled before its digest is verified.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: expected the watch data of {PACKAGE}, got {error.strerror}") from error
    if digest != SHA256:
        raise DataError(f"{path}: expected the watch data of {PACKAGE} with SHA-256 {SHA256}, got {digest}")
    return np.load(path, allow_pickle=True).item()


def read_windows(path: Path | None = None) -> Windows:
    """All 3,605 windows of 128 readings, 64 apart, in the sensors' units; no window spans two recordings.

    Args:
        path: the data file; None for the installed package's.

    Raises:
        DataError: naming the file and what was expected.
    """
    recordings = read_recordings(watch_file() if path is None else path)
    windows, targets, subjects = [], [], []
    for signal, label, subject in zip(recordings["X"], recordings["y"], recordings["subject"], strict=True):
        cut = torch.from_numpy(np.asarray(signal, np.float32)).unfold(0, WINDOW, STRIDE)
        windows.append(cut)
        targets += [int(label)] * len(cut)
        subjects += [int(subject)] * len(cut)
    signals = torch.cat(windows)
    inputs = {name: signals[:, channels].contiguous() for name, channels in MODALITIES.items()}
    batch = Batch(inputs, torch.tensor(targets, device="cpu"), torch.arange(len(signals), device="cpu"))
    return Windows(batch, torch.tensor(subjects, device="cpu"), tuple(str(name) for name in recordings["y_labels"]))


def split_by_subject(windows: Windows) -> dict[str, Batch]:
    """Train, validation and test windows of different people (SUBJECTS), standardised.

    Every channel is centred and scaled by its mean and standard deviation over the training people.
    """
    parts = {
        name: windows.batch.select(torch.isin(windows.subject, torch.tensor(people, device="cpu")))
        for name, people in SUBJECTS.items()
    }
    for name in windows.batch.inputs:
        std, mean = torch.std_mean(parts["train"].inputs[name], (0, 2), keepdim=True)
        for part in parts.values():
            part.inputs[name] = (part.inputs[name] - mean) / std
    return parts


def load_watch(root: Path | str | None = None, *, seed: int = 0) -> MultimodalData:
    """The watch data, two sensors (B, 3, 128), standardised, split by person.

    Args:
        root: the data file or its folder; None for the installed package's.
        seed: not used: the split is fixed.

    Raises:
        DataError: naming the file and what was expected.
    """
    path = None if root is None else Path(root)
    windows = read_windows(path / Path(FILE).name if path is not None and path.is_dir() else path)
    parts = {name: TensorSet(batch) for name, batch in split_by_subject(windows).items()}
    noise = dict.fromkeys(MODALITIES, Noise(SIGMA_UNIT))
    spec = DataSpec("watch", tuple(MODALITIES), windows.classes, "classification", noise)
    return MultimodalData(
        spec,
        **parts,
        make_encoders=lambda width: {name: ConvEncoder1d(3, width) for name in MODALITIES},
    )
