"""Small data sets on disk, in the formats of the real ones."""

import re
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from udml.data import DataError, MultimodalData, load_data

CREMAD_TRAIN = [
    ("1001_DFA_ANG_XX", "ANG"),
    ("1001_IEO_HAP_LO", "HAP"),
    ("1002_ITS_NEU_XX", "NEU"),
    ("1003_TIE_SAD_XX", "SAD"),
    ("1003_WSI_FEA_XX", "FEA"),
]
CREMAD_TEST = [("1001_MTI_DIS_XX", "DIS"), ("1002_IWW_SAD_XX", "SAD")]
SOUNDS_TRAIN = [(f"-3Mwkq-7TV{i}_000002_000012", ("tap dancing", "bowling")[i % 2]) for i in range(8)]
SOUNDS_TEST = [("051OSKacPxg_000129_000139", "bowling"), ("05Ntgt4qOwg_000087_000097", "tap_dancing")]


def write_wav(path: Path, signal: np.ndarray, rate: int = 16000, width: int = 2) -> None:
    """(samples,) or (samples, channels) in [-1, 1) as integers of `width` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.atleast_2d(signal.T).T
    integers = np.round(values * 2 ** (8 * width - 1)).astype("<i4") + (128 if width == 1 else 0)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(integers.reshape(-1, 1).view(np.uint8)[:, :width].tobytes())


def tone(hertz: float, seconds: float, rate: int = 16000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_list(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    path.write_text("".join(f"{clip},{label}\n" for clip, label in rows))


def write_clips(root: Path, audio: str, frames: str, clips: Sequence[str], count: int, rate: int) -> None:
    """Tones of half a second, and `count` grey frames of 40 x 30 pixels: frame i of clip j is 10 i + j bright."""
    for j, clip in enumerate(clips):
        write_wav(root / audio / f"{clip}.wav", tone(400 + 100 * j, 0.5, rate), rate)
        for i in range(count):
            write_image(root / frames / clip / f"{25 * i:05d}.jpg", np.full((30, 40, 3), 10 * i + j, np.uint8))


def write_cremad(root: Path) -> Path:
    write_clips(root, "AudioWAV", "Image-01-FPS", [clip for clip, _ in CREMAD_TRAIN + CREMAD_TEST], 3, 16000)
    write_list(root / "train.csv", CREMAD_TRAIN)
    write_list(root / "test.csv", CREMAD_TEST)
    return root


def write_sounds(root: Path) -> Path:
    write_clips(root, "wav", "frames", [clip for clip, _ in SOUNDS_TRAIN + SOUNDS_TEST], 10, 16000)
    write_list(root / "train.csv", SOUNDS_TRAIN)
    write_list(root / "test.csv", SOUNDS_TEST)
    return root


def write_nyud(root: Path, void: int = 0, shape: tuple[int, int] = (12, 16)) -> Path:
    """Scenes 0 to 7: a ramp of colour, depth of 16 bits from 0 to 10 m, and a void first row above class i + column."""
    ramp = np.arange(shape[0] * shape[1]).reshape(shape)
    for i in range(8):
        write_image(root / "RGB" / f"{i}.png", np.stack([ramp, ramp + 30, 255 - ramp], 2).astype(np.uint8))
        write_image(root / "Depth" / f"{i}.png", (ramp * (10_000 / ramp.max())).astype(np.uint16))
        label = np.tile(np.arange(shape[1]) + i, (shape[0], 1)) + (1 if void == 0 else 0)
        label[0] = void
        write_image(root / "Label" / f"{i}.png", label.astype(np.uint8))
    (root / "train.txt").write_text("".join(f"{i}\n" for i in range(5)))
    (root / "test.txt").write_text("RGB/5.jpg\nRGB/6.jpg Label/6.png\nRGB/7.jpg\n")
    return root


WRITERS = {"cremad": write_cremad, "kinetics-sound": write_sounds, "nyud": write_nyud}
_SIZES = {"cremad": 32, "kinetics-sound": 32, "nyud": (12, 16)}


def load_small(name: str, root: Path, **options) -> MultimodalData:
    """A written set, its images small."""
    return load_data(name, root, **{"size": _SIZES[name], **options})


def refused(message: str, path: Path | str = ""):
    """A DataError that begins with a path."""
    return pytest.raises(DataError, match=f"^{re.escape(str(path))}.*{message}")
