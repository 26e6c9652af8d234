"""NYU Depth v2: indoor scenes, colour and depth, a label of 40 classes for each pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..encoders import SegmentationEncoder
from ..layers.noise import Noise
from .base import IGNORED, UNLABELLED, DataError, DataSpec
from .files import IMAGE_SUFFIXES, check_image, data_folder, fail, images_in, open_image, read_text
from .images import IMAGE_NOISE, resized, rgb_tensor
from .sets import FolderSet, MultimodalData
from .splits import hold_out

CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box"),
    *("whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure"),
    *("other furniture", "other prop"),
)
# Mean and standard deviation of depth scaled to 1, as is usual in RGB-D segmentation.
DEPTH_NOISE = Noise(unit=1.0, power=2.0, clamp=(0.0, 255.0), normalize=(255.0, 0.48, 0.28))


@dataclass(frozen=True)
class Scene:
    """The three images of a scene."""

    rgb: Path
    depth: Path
    label: Path


@dataclass(frozen=True)
class SceneReader:
    """Reads a Scene: {"rgb": uint8 (3, H, W), "depth": float32 (channels, H, W)} and the target, int64 (H, W).

    Attributes:
        size: (H, W).
        void: the stored label of pixels without a class: 0, and then class k is stored as k + 1; or 255.
        depth_max: the value of a 16-bit image that becomes 255.
        channels: 1 for depth, 3 for HHA images.
    """

    size: tuple[int, int]
    void: int
    depth_max: float
    channels: int

    def __call__(self, scene: Scene) -> tuple[dict[str, Tensor], Tensor]:
        rgb, depth, label = (open_image(path) for path in (scene.rgb, scene.depth, scene.label))
        for path, image in ((scene.depth, depth), (scene.label, label)):
            if image.size != rgb.size:
                expected = f"{rgb.size[0]} x {rgb.size[1]} pixels, as {scene.rgb}"
                fail(path, expected, f"{image.size[0]} x {image.size[1]}")
        target = label_tensor(scene.label, resized(label, self.size, smooth=False), self.void)
        return {"rgb": rgb_tensor(rgb, self.size), "depth": self._depth(scene.depth, depth)}, target

    def _depth(self, path: Path, image) -> Tensor:
        """float32 (channels, H, W) in [0, 255]."""
        if channels_of(image) != self.channels:
            fail(path, f"{self.channels} channel(s), as the first depth image", f"the mode {image.mode}")
        # Nearest neighbour, so that depth is not interpolated across edges and holes.
        pixels = np.array(resized(image, self.size, smooth=False), np.float32)
        if image.mode.startswith("I"):
            pixels = (pixels * (255 / self.depth_max)).clip(0, 255)
        return torch.from_numpy(pixels.reshape(*self.size, self.channels)).permute(2, 0, 1).contiguous()


def channels_of(image) -> int:
    """1 for images of 8 or 16 bits, 3 for colour, 0 for anything else."""
    return 1 if image.mode in ("L", "I", "I;16", "I;16B", "I;16L") else 3 if image.mode == "RGB" else 0


def label_tensor(path: Path, image, void: int) -> Tensor:
    """A PIL label image as int64 (H, W): the class, or IGNORED where it is `void`.

    Raises:
        DataError: naming `path`, for several channels or values that are not labels.
    """
    # The indices of a palette image are accepted as labels too.
    if channels_of(image) != 1 and image.mode != "P":
        fail(path, "one channel of labels", f"the mode {image.mode}")
    stored = torch.from_numpy(np.array(image).astype(np.int64))
    target = stored - 1 if void == 0 else stored
    wrong = (stored != void) & ((target < 0) | (target >= len(CLASSES)))
    if bool(wrong.any()):
        low, high = (1, len(CLASSES)) if void == 0 else (0, len(CLASSES) - 1)
        got = ", ".join(map(str, stored[wrong].unique()[:5].tolist()))
        fail(path, f"labels in [{low}, {high}], or {void} for none", got)
    return torch.where(stored == void, IGNORED, target)


def _names(path: Path) -> list[str]:
    """The names in a list, each of which must occur only once."""
    names: dict[str, None] = {}
    for line in read_text(path, "a list of images, one a line").splitlines():
        if line.strip():
            # RGB/12.jpg, with or without further columns, stands for 12.
            name = Path(line.split()[0]).name
            name = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
            if name in names:
                fail(path, "each image once", f"{name} again")
            names[name] = None
    if not names:
        fail(path, "at least one name", "none")
    return list(names)


def _scenes(root: Path, names: Sequence[str], folders: Sequence[str]) -> list[Scene]:
    expected = f"an image ({', '.join(IMAGE_SUFFIXES)}), which a list names"
    columns = []
    for folder in folders:
        paths = images_in(root / folder)
        found = {path.stem: path for path in paths}
        for name in names:
            if name not in found:
                fail(root / folder / name, expected, "nothing there")
            check_image(found[name])
        twice = [path for path in paths if found[path.stem] != path and path.stem in set(names)]
        if twice:
            fail(root / folder / twice[0].stem, "one image", f"{twice[0].name} and {found[twice[0].stem].name}")
        columns.append([found[name] for name in names])
    return [Scene(*paths) for paths in zip(*columns, strict=True)]


def load_nyud(
    root: Path | str | None,
    *,
    seed: int = 0,
    size: tuple[int, int] = (480, 640),
    rgb_folder: str = "RGB",
    depth_folder: str = "Depth",
    label_folder: str = "Label",
    train_list: str = "train.txt",
    test_list: str = "test.txt",
    validation: float | str = 0.1,
    void: int = 0,
    depth_max: float = 10_000.0,
    check_labels: bool = True,
) -> MultimodalData:
    """NYU Depth v2 from its folder (docs/data.md).

    "rgb" is uint8 (B, 3, H, W), "depth" float32 (B, 1, H, W) in [0, 255], the target int64 (B, H, W).

    Args:
        root: the folder.
        seed: chooses the validation images.
        size: (H, W); images of another size are resized, depth and labels to the nearest pixel.
        rgb_folder, label_folder: contain images NAME.jpg or .png.
        depth_folder: likewise; 8 bits as they are, 16 bits scaled by depth_max; colour is HHA and gives 3 channels.
        train_list, test_list: NAME, or a path to NAME.jpg, one per line.
        validation: the fraction of the training list to use for validation, or the name of a list.
        void: the stored label of pixels without a class. 0: class k is stored as k + 1, as in the common copies.
            255: it is stored as k.
        depth_max: the value of a 16-bit image that becomes 255; 10,000 is ten metres in millimetres.
        check_labels: read every label image now (some seconds), so that a wrong one is found before training.

    Raises:
        ValueError: void is neither 0 nor 255.
        DataError: naming the file and what was expected.
    """
    if void not in (0, IGNORED):
        raise ValueError(f"void: expected 0 or {IGNORED}, got {void!r}")
    root = data_folder(root, "nyud")
    lists = [train_list, *([validation] if isinstance(validation, str) else []), test_list]
    names = [_names(root / name) for name in lists]
    for (first, one), (second, other) in combinations(zip(lists, names, strict=True), 2):
        if set(one) & set(other):
            fail(root / second, f"no image of {first}", min(set(one) & set(other)))
    scenes = _scenes(root, [name for part in names for name in part], (rgb_folder, depth_folder, label_folder))
    labelled = [not check_labels or _labelled(scene.label, void) for scene in scenes]
    channels = channels_of(open_image(scenes[0].depth)) or 1
    read = SceneReader((size[0], size[1]), void, depth_max, channels)
    rows = _rows([len(part) for part in names], validation, seed)
    for split, part in zip(("train", "validation", "test"), rows, strict=True):
        if part and not any(labelled[i] for i in part):
            raise DataError(f"nyud, {split}: {UNLABELLED}")
    parts = [FolderSet([scenes[i] for i in part], part, read) for part in rows]
    noise = {"rgb": IMAGE_NOISE, "depth": DEPTH_NOISE if channels == 1 else IMAGE_NOISE}
    spec = DataSpec("nyud", ("rgb", "depth"), CLASSES, "segmentation", noise)
    return MultimodalData(
        spec,
        parts[0],
        parts[1],
        parts[2],
        lambda width: {"rgb": SegmentationEncoder(3, width), "depth": SegmentationEncoder(channels, width)},
    )


def _labelled(path: Path, void: int) -> bool:
    """Whether any pixel of a label image has a class. Raises DataError as `label_tensor`."""
    return bool((label_tensor(path, open_image(path), void) != IGNORED).any())


def _rows(lengths: Sequence[int], validation: float | str, seed: int) -> list[list[int]]:
    """The positions of the training, validation and test images in the concatenated lists."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parts = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    if len(parts) == 3:
        return parts
    held = hold_out(parts[0], validation, seed).tolist()
    return [[i for i in parts[0] if not held[i]], [i for i in parts[0] if held[i]], parts[1]]
