"""Copy the results of runs to benchmarks/results/<card>/gpu: text only, and of each file at most 300 KB."""

import tarfile
import tempfile
from pathlib import Path

from . import read, summary
from .plan import ROOT, parts

MOST = 300_000
_TEXT = (".txt", ".jsonl", ".json", ".csv", ".md")
# Each part of a run appends to it, so those of several folders belong together.
_JOINED = "steps.jsonl"


def pack(out: Path, file: Path) -> None:
    """All of a folder in one .tar.gz, which replaces the one before."""
    unfinished = file.with_name(file.name + ".part")
    with tarfile.open(unfinished, "w:gz") as archive:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path not in (file, unfinished):
                archive.add(path, path.relative_to(out))
    unfinished.replace(file)


def shortened(text: str, most: int = MOST) -> str:
    """Whole lines of the beginning and the end, at most `most` bytes together; the lines between are counted."""
    if len(text.encode()) <= most:
        return text
    lines, size = text.splitlines(keepends=True), 0
    head: list[str] = []
    tail: list[str] = []
    room = most - 100
    for i in range(len(lines)):
        # From the beginning and the end in turn.
        line = lines[i // 2] if i % 2 == 0 else lines[-1 - i // 2]
        size += len(line.encode())
        if size > room:
            break
        (head if i % 2 == 0 else tail).append(line)
    left_out = len(lines) - len(head) - len(tail)
    return "".join((*head, f"... {left_out} lines left out ...\n", *reversed(tail)))


def keep(given: list[Path], results: Path = ROOT / "benchmarks" / "results") -> Path:
    """Copy from folders, or from files that `pack` made, and write the summary of all of them."""
    with tempfile.TemporaryDirectory() as unpacked:
        folders = [_folder(path, Path(unpacked) / str(i)) for i, path in enumerate(given)]
        card = next((facts["directory"] for folder in folders if "directory" in (facts := read.facts(folder))), None)
        if card is None:
            raise ValueError(f"keep: expected the facts of part 1 in {', '.join(map(str, given))}, got none")
        target = results / str(card) / "gpu"
        target.mkdir(parents=True, exist_ok=True)
        steps = "".join(read.text(folder, _JOINED) for folder in folders)
        for folder in folders:
            for file in sorted(folder.rglob("*")):
                if file.is_file() and file.suffix in _TEXT:
                    place = target / file.relative_to(folder)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_text(shortened(file.read_text(errors="replace")))
        (target / _JOINED).write_text(steps)
    summary.write(target, parts(target))
    return target


def _folder(path: Path, unpacked: Path) -> Path:
    if path.is_dir():
        return path
    with tarfile.open(path) as archive:
        archive.extractall(unpacked, filter="data")
    return unpacked
