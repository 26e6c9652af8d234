"""Kinetics-Sound: the actions of Kinetics that are both visible and audible."""

from collections.abc import Sequence
from pathlib import Path

import torch

from .audio import AudioFormat
from .clips import Clip, ClipFolders, clip_data, read_lists
from .files import data_folder, read_clip_list
from .sets import MultimodalData
from .splits import hold_out_per_class

# Arandjelović and Zisserman, Look, Listen and Learn (ICCV 2017), appendix A.1. The published Kinetics-400 lacks
# fingerpicking, patting and typing: it has the 31 classes that most papers use.
ACTIONS = (
    *("blowing nose", "blowing out", "bowling", "chopping wood", "dribbling ball", "fingerpicking", "laughing"),
    *("mowing the lawn by pushing lawnmower", "patting", "playing accordion", "playing bagpipes"),
    *("playing bass guitar", "playing clarinet", "playing drums", "playing guitar", "playing harmonica"),
    *("playing keyboard", "playing organ", "playing piano", "playing saxophone", "playing trombone"),
    *("playing trumpet", "playing violin", "playing xylophone", "ripping paper", "shoveling snow"),
    *("shuffling cards", "singing", "stomping", "tap dancing", "tapping guitar", "tapping pen", "tickling", "typing"),
)
KINETICS_400_NAMES = {
    "blowing out candles": "blowing out",
    "dribbling basketball": "dribbling ball",
    "mowing lawn": "mowing the lawn by pushing lawnmower",
    "stomping grapes": "stomping",
}
SOUND = AudioFormat(rate=16000, seconds=5.0, n_fft=256, hop=128, centre=True)


def action_name(text: str) -> str:
    """A class's name as ACTIONS spells it; text that names no class is returned in lower case and with spaces."""
    words = " ".join(text.lower().replace("_", " ").split())
    return KINETICS_400_NAMES.get(words, words)


def load_kinetics_sound(
    root: Path | str | None,
    *,
    seed: int = 0,
    frames: int = 3,
    size: int = 224,
    classes: Sequence[str] | None = None,
    audio_folder: str = "wav",
    frame_folder: str = "frames",
    train_list: str = "train.csv",
    test_list: str = "test.csv",
    validation: float | str = 0.1,
    skip_missing: bool = False,
) -> MultimodalData:
    """Kinetics-Sound from its folder (docs/data.md); "audio" is (B, 1, 129, 626), "visual" (B, 3, frames, size, size).

    Args:
        root: the folder.
        seed: chooses the validation clips.
        frames: images per clip.
        size: height and width of the images.
        classes: names in the order of the labels; None for those of ACTIONS that the training list has, in
            alphabetical order. Case is ignored, `_` counts as a space, and the names of Kinetics-400 are known too.
        audio_folder: holds CLIP.wav.
        frame_folder: holds a folder CLIP of images.
        train_list, test_list: csv lines `clip,label`; the label is a class's name.
        validation: the fraction of each class of the training list to use for validation, or the name of a list.
        skip_missing: leave out, with a warning, clips that lack a file; otherwise they are an error.

    Raises:
        DataError: naming the file and what was expected.
    """
    root = data_folder(root, "kinetics-sound")
    known = ACTIONS if classes is None else tuple(action_name(name) for name in classes)
    if classes is None:
        rows = read_clip_list(root / train_list, _index(known), ", ".join(known))
        known = tuple(known[i] for i in sorted({label for _, label in rows}))
    lists = read_lists(root, train_list, test_list, validation, _index(known), known)
    folders = ClipFolders(root / audio_folder, root / frame_folder, SOUND, frames, size)

    def choose(clips: list[Clip]):
        labels = torch.tensor([clip.label for clip in clips], device="cpu")
        return hold_out_per_class(labels, validation, seed)

    return clip_data("kinetics-sound", known, lists, folders, choose, skip_missing)


def _index(known: Sequence[str]):
    numbers = {name: i for i, name in enumerate(known)}
    return lambda text: numbers.get(action_name(text))
