"""The documentation's code runs, and the names in it exist."""

import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

DOCS = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
NAME = re.compile(r"\b(?:udml|udml_kernels)(?:\.[A-Za-z_]\w*)+")


def blocks(text: str) -> list[tuple[int, str, str]]:
    """(line number, info string, code) of every fenced block."""
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.S | re.M)
    return [(text.count("\n", 0, m.start(2)), m[1], m[2]) for m in found]


def runnable(path: Path) -> list[tuple[int, str]]:
    return [(line, code) for line, info, code in blocks(path.read_text()) if info == "python runnable"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_porting_has_examples():
    assert len(runnable(next(path for path in DOCS if path.name == "porting.md"))) >= 3


@pytest.mark.parametrize("path", [path for path in DOCS if runnable(path)], ids=lambda path: path.name)
def test_runnable_blocks(path, tmp_path, monkeypatch):
    """Top to bottom in one namespace and an empty folder; line numbers in a traceback are the file's."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": path.stem}
    for line, code in runnable(path):
        exec(compile("\n" * line + code, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_marks_are_spelled_right(path):
    infos = {info for _, info, _ in blocks(path.read_text())}
    assert not {info for info in infos if info.startswith("python")} - {"python", "python runnable"}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_names_exist(path):
    code = [code for _, info, code in blocks(path.read_text()) if info.startswith("python")]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.S | re.M))
    for name in {name for text in (*code, *inline) for name in NAME.findall(text)}:
        pkgutil.resolve_name(name)


def test_keywords_of_the_porting_table_exist():
    """Of every call of a udml name in a table or pitfall, the keywords that it is given."""
    text = next(path for path in DOCS if path.name == "porting.md").read_text()
    calls = [(m[1], m[2]) for m in re.finditer(rf"`[^`\n]*?({NAME.pattern})\(([^`\n]*)\)[^`\n]*`", text)]
    assert len(calls) > 10
    for name, arguments in calls:
        target = pkgutil.resolve_name(name)
        parameters = inspect.signature(target).parameters
        # Of the call itself, not of calls inside it.
        while (flat := re.sub(r"\([^()]*\)", "", arguments)) != arguments:
            arguments = flat
        for keyword in re.findall(r"(\w+)=", arguments):
            assert keyword in parameters, f"{name} has no {keyword}"
