"""A run's folder: which contents are allowed before training, and how files are written and read."""

import csv
import io
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .config import TrainConfig

LAST, BEST, METRICS, RESULT, CONFIG = "last.ckpt", "best.ckpt", "metrics.csv", "result.json", "config.yaml"
BOARD = "tensorboard"


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a new file beside `path`, then move it into place: a killed process leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, atomically, with all columns that occur in any of them."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's dictionary, with its tensors on the CPU; only tensors and plain types are unpickled.

    Raises:
        ValueError: if the file is missing or not a checkpoint; the message names it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: expected a checkpoint, got nothing there") from error
    except Exception as error:
        raise ValueError(f"{path}: expected a checkpoint, got {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def check_folder(config: TrainConfig) -> Path | None:
    """The checkpoint to continue from, None to start from the beginning; nothing is written.

    Raises:
        ValueError: if the folder holds a run that the config neither resumes nor replaces, or none to resume.
    """
    if config.out is None:
        return None
    out, last = config.out, config.out / LAST
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: expected a folder, got the file {out}")
    if not config.resume:
        if not config.overwrite and (last.exists() or (out / RESULT).exists()):
            raise ValueError(f"out: {out} holds a run; expected resume to go on with it, or overwrite to replace it")
        return None
    if not last.exists():
        if not (out / CONFIG).exists():
            raise ValueError(f"resume: expected a run in {out}, got none")
        return None
    return last


def start_folder(config: TrainConfig) -> None:
    """Remove the run that is replaced, and write config.yaml, which --config accepts."""
    import yaml

    out = config.out
    assert out is not None
    if config.overwrite:
        for name in (LAST, BEST, METRICS, RESULT, CONFIG):
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / BOARD, ignore_errors=True)
    write_text(out / CONFIG, yaml.safe_dump(config.plain(), sort_keys=False))
