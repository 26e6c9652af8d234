"""CREMA-D: six emotions, spoken by 91 actors; sound and face."""

import re
from pathlib import Path

from torch import Tensor

from .audio import AudioFormat
from .clips import Clip, ClipFolders, clip_data, read_lists
from .files import data_folder, fail
from .sets import MultimodalData
from .splits import hold_out

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
SOUND = AudioFormat(rate=22050, seconds=3.0, n_fft=512, hop=353)


def _label(text: str) -> int | None:
    if text.isdecimal() and int(text) < len(EMOTIONS):
        return int(text)
    return EMOTIONS.index(text.upper()) if text.upper() in EMOTIONS else None


def load_cremad(
    root: Path | str | None,
    *,
    seed: int = 0,
    frames: int = 1,
    size: int = 224,
    audio_folder: str = "AudioWAV",
    frame_folder: str = "Image-01-FPS",
    train_list: str = "train.csv",
    test_list: str = "test.csv",
    validation: float | str = 0.1,
    skip_missing: bool = False,
) -> MultimodalData:
    """CREMA-D from its folder (docs/data.md); "audio" is (B, 1, 257, 188), "visual" (B, 3, frames, size, size).

    Args:
        root: the folder.
        seed: chooses the validation actors.
        frames: images per clip.
        size: height and width of the images.
        audio_folder: holds CLIP.wav.
        frame_folder: holds a folder CLIP of images.
        train_list, test_list: csv lines `clip,label`; the label is one of EMOTIONS or its number, 0 to 5.
        validation: the fraction of the training list's actors to use for validation, all of whose clips are then left
            out of training; or the name of a list.
        skip_missing: leave out, with a warning, clips that lack a file; otherwise they are an error.

    Raises:
        DataError: naming the file and what was expected.
    """
    root = data_folder(root, "cremad")
    lists = read_lists(root, train_list, test_list, validation, _label, EMOTIONS)
    folders = ClipFolders(root / audio_folder, root / frame_folder, SOUND, frames, size)

    def actor(clip: Clip) -> str:
        match = re.match(r"\d{4}(?=_)", Path(clip.name).name)
        if match is None:
            fail(root / train_list, "names that begin with an actor's number, 1001_", clip.name)
        return match[0]

    def choose(clips: list[Clip]) -> Tensor:
        return hold_out([actor(clip) for clip in clips], validation, seed)

    return clip_data("cremad", EMOTIONS, lists, folders, choose, skip_missing)
