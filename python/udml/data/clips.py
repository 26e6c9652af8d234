"""Clips of sound and frames, listed in csv files: the common part of CREMA-D and Kinetics-Sound."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..encoders import FrameEncoder, SpectrogramEncoder
from ..layers.noise import Noise
from .audio import AudioFormat, check_wav, read_spectrogram
from .base import DataError, DataSpec
from .files import check_image, fail, images_in, read_clip_list
from .images import IMAGE_NOISE, read_rgb
from .sets import FolderSet, MultimodalData

MODALITIES = ("audio", "visual")


@dataclass(frozen=True)
class Clip:
    """A clip's name, class, and position in the whole data set."""

    name: str
    label: int
    row: int


@dataclass(frozen=True)
class ClipFolders:
    """Where clips are and how they are read: `audio`/NAME.wav and the images in the folder `frames`/NAME.

    Calling it with a Clip gives {"audio": float32 (1, frequencies, times), "visual": uint8 (3, count, size, size)}
    and the label, int64 ().

    Attributes:
        audio, frames: the folders.
        sound: the spectrogram's format.
        count: frames per clip, from the middles of as many equal stretches; a shorter clip repeats some.
        size: their height and width.
    """

    audio: Path
    frames: Path
    sound: AudioFormat
    count: int
    size: int

    def __post_init__(self):
        for name, value in (("frames", self.count), ("size", self.size)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")

    def __call__(self, clip: Clip) -> tuple[dict[str, Tensor], Tensor]:
        visual = torch.stack([read_rgb(path, (self.size, self.size)) for path in self.chosen(clip)], 1)
        audio = read_spectrogram(self.wav(clip), self.sound)
        return {"audio": audio, "visual": visual}, torch.tensor(clip.label, device="cpu")

    def wav(self, clip: Clip) -> Path:
        """The clip's sound."""
        return self.audio / f"{clip.name}.wav"

    def chosen(self, clip: Clip) -> list[Path]:
        """The frames of the clip that are read."""
        paths = images_in(self.frames / clip.name)
        return [paths[(2 * i + 1) * len(paths) // (2 * self.count)] for i in range(self.count)]

    def check(self, clip: Clip) -> None:
        """Raises DataError if a clip's sound or frames are missing or empty; only headers are read."""
        wav, frames = self.wav(clip), self.frames / clip.name
        for path, there, what in ((wav, wav.is_file(), "a wav file"), (frames, frames.is_dir(), "a folder of frames")):
            if not there:
                fail(path, f"{what}, which a list names", "nothing there")
        check_wav(wav)
        for path in self.chosen(clip):
            check_image(path)

    def complete(self, clips: Sequence[Clip], skip_missing: bool) -> list[Clip]:
        """The clips that pass `check`; the others are an error, or left out with a warning.

        Raises:
            DataError: naming the first file that is missing.
        """
        for folder in (self.audio, self.frames):
            if not folder.is_dir():
                fail(folder, "a folder of clips", "nothing there")
        kept, faults = [], []
        for clip in clips:
            try:
                self.check(clip)
                kept.append(clip)
            except DataError as error:
                if not skip_missing:
                    raise DataError(f"{error} (skip_missing leaves such clips out)") from error
                faults.append(error)
        if faults:
            text = f"{len(faults)} of {len(clips)} clips lack files and are left out; {faults[0]}"
            warnings.warn(text, stacklevel=4)
        return kept


@dataclass(frozen=True)
class ClipLists:
    """The contents of a data set's lists.

    Attributes:
        train, test: their clips; validation: the clips of its own list, None if there is none.
    """

    train: list[Clip]
    test: list[Clip]
    validation: list[Clip] | None = None


def read_lists(
    root: Path,
    train: str,
    test: str,
    validation: float | str,
    label_of: Callable[[str], int | None],
    classes: Sequence[str],
) -> ClipLists:
    """Read the lists; clips are numbered consecutively through train, validation and test.

    Raises:
        DataError: naming the file and line, or a clip that is listed twice.
    """
    names = [train, *([validation] if isinstance(validation, str) else []), test]
    lists: list[list[Clip]] = []
    seen: dict[str, str] = {}
    start = 0
    for name in names:
        rows = read_clip_list(root / name, label_of, ", ".join(classes))
        for clip, _ in rows:
            if clip in seen:
                fail(root / name, f"no clip of {seen[clip]}", clip)
            seen[clip] = name
        lists.append([Clip(clip, label, start + i) for i, (clip, label) in enumerate(rows)])
        start += len(rows)
    return ClipLists(lists[0], lists[-1], lists[1] if len(lists) == 3 else None)


def clip_data(
    name: str,
    classes: Sequence[str],
    lists: ClipLists,
    folders: ClipFolders,
    choose: Callable[[list[Clip]], Tensor],
    skip_missing: bool,
) -> MultimodalData:
    """The data set of these clips.

    Args:
        name: the data set's name.
        classes: the names of the classes.
        lists: the clips.
        folders: reads them.
        choose: selects the validation clips from the training list, bool (N,), if there is no list of them.
        skip_missing: leave out the clips that lack files.
    """
    train, test = (folders.complete(part, skip_missing) for part in (lists.train, lists.test))
    if lists.validation is not None:
        validation = folders.complete(lists.validation, skip_missing)
    elif train:
        chosen = choose(train).tolist()
        validation = [clip for clip, held in zip(train, chosen, strict=True) if held]
        train = [clip for clip, held in zip(train, chosen, strict=True) if not held]
    else:
        raise DataError(f"{name}, train: expected at least one sample, got none")

    def split(clips: list[Clip]) -> FolderSet:
        return FolderSet(clips, [clip.row for clip in clips], folders, [clip.label for clip in clips])

    spec = DataSpec(name, MODALITIES, tuple(classes), "classification", {"audio": Noise(1.0), "visual": IMAGE_NOISE})
    return MultimodalData(
        spec,
        split(train),
        split(validation),
        split(test),
        lambda width: {"audio": SpectrogramEncoder(width), "visual": FrameEncoder(width)},
    )
