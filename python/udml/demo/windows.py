"""The watch data: seven shoulder exercises of ten people, from an accelerometer and a gyroscope at 50 Hz."""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PACKAGE = "seglearn==1.2.5"
FILE = "seglearn/data/watch_dataset.npy"
SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
WINDOW, STRIDE = 128, 64
MODALITIES = {"accelerometer": slice(0, 3), "gyroscope": slice(3, 6)}
SUBJECTS = {"train": (1, 2, 3, 4, 5, 6), "validation": (7, 8), "test": (9, 10)}


class DataError(Exception):
    """Data is missing or is not what it should be; the message names the file and what was expected."""


@dataclass
class Windows:
    """N windows of recordings.

    Attributes:
        inputs: a tensor (N, 3, 128) per modality, in the order of MODALITIES; float32.
        target: int64 (N,), the exercise.
        subject: int64 (N,), the person, 1 to 10.
        index: int64 (N,), the window's place in the whole data set: its identity for the noise.
        classes: the exercises' names.
    """

    inputs: list[Tensor]
    target: Tensor
    subject: Tensor
    index: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.target)

    def select(self, rows: Tensor) -> "Windows":
        """The rows of an index or a bool tensor."""
        inputs = [x[rows] for x in self.inputs]
        return Windows(inputs, self.target[rows], self.subject[rows], self.index[rows], self.classes)


def watch_file() -> Path:
    """Where the installed package keeps the data; the package is not imported.

    Raises:
        DataError: when it is not installed.
    """
    try:
        files = importlib.metadata.files("seglearn") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(f.locate())) for f in files if f.as_posix() == FILE), None)
    if path is None or not path.exists():
        raise DataError(f"{FILE}: not found. It comes with a package: pip install --no-deps {PACKAGE}")
    return path


def read_recordings(path: Path) -> dict:
    """The file's dictionary: X (a list of (T, 6) arrays), y, subject, y_labels.

    Raises:
        DataError: when the file cannot be read, or is not the one published with the package. It is a
            pickle, which may run code, so nothing in it is read before its digest is known.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: expected the watch data of {PACKAGE}, got {error.strerror}") from error
    if digest != SHA256:
        raise DataError(f"{path}: expected the watch data of {PACKAGE} with SHA-256 {SHA256}, got {digest}")
    return np.load(path, allow_pickle=True).item()


def load_watch(path: Path | None = None) -> Windows:
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
    return Windows(
        [signals[:, channels].contiguous() for channels in MODALITIES.values()],
        torch.tensor(targets),
        torch.tensor(subjects),
        torch.arange(len(signals)),
        tuple(recordings["y_labels"]),
    )


def split_by_subject(windows: Windows) -> dict[str, Windows]:
    """Train, validation and test windows of different people (SUBJECTS), standardised.

    Every channel is centred and scaled by its mean and standard deviation over the training people.
    """
    parts = {
        name: windows.select(torch.isin(windows.subject, torch.tensor(people))) for name, people in SUBJECTS.items()
    }
    for m in range(len(windows.inputs)):
        std, mean = torch.std_mean(parts["train"].inputs[m], (0, 2), keepdim=True)
        for part in parts.values():
            part.inputs[m] = (part.inputs[m] - mean) / std
    return parts
