"""The project's pages in Markdown: their blocks of code, their commands and their links."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
RESULTS = [page for page in (ROOT / "experiments/results").glob("**/*.md") if "runs" not in page.parts]
PAGES = sorted([*ROOT.glob("*.md"), *DOCS, ROOT / "benchmarks/NOTES.md", *RESULTS])
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python3? -m|torchrun|make|pip install|udml|udml-kernels) ")
_HAVE_COMMANDS = ("udml", "udml_kernels", "benchmarks")
_SCRIPTS = {"udml": "udml", "udml-kernels": "udml_kernels"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(text: str) -> list[tuple[int, str, str]]:
    """(line number, info string, code) of every fenced block."""
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.S | re.M)
    return [(text.count("\n", 0, m.start(2)), m[1], m[2]) for m in found]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


def inline(text: str) -> list[str]:
    """The code between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in blocks that are not Python, and between backticks."""
    lines = [line for _, info, code in blocks(text) if not info.startswith("python") for line in code.splitlines()]
    for line in filter(_COMMAND.match, (*lines, *inline(text))):
        words = shlex.split(line, comments=True)
        while re.match(r"[A-Z_]+=", words[0]):
            del words[0]
        yield words


def complaint(words: list[str]) -> str | None:
    """What is wrong with a command: a target, subcommand, flag or pinned package that is not there; or None."""
    if words[0] == "make":
        return _of_make(words[1:])
    if words[0] == "pip":
        return _of_pip(words[2:])
    if words[0] in _SCRIPTS:
        return _of_module(_SCRIPTS[words[0]], words[1:])
    at = words.index("-m") + 1
    return _of_module(words[at], words[at + 1 :])


def _of_make(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        if not re.search(rf"\$\({name}\)" if is_variable else rf"^{re.escape(name)}:(?!=)", makefile, re.M):
            return f"the Makefile has no {word}"
    return None


def _of_pip(words: list[str]) -> str | None:
    for word in words:
        if "==" in word and word not in _pinned():
            return f"{word} is in no requirements file"
        for extra in re.findall(r"\[(.*?)\]", word):
            if word.startswith((".", "udml-kernels")) and f"\n{extra} = [" not in (ROOT / "pyproject.toml").read_text():
                return f"pyproject.toml has no extra {extra}"
    return None


@functools.cache
def _pinned() -> str:
    return "\n".join(path.read_text() for path in sorted(ROOT.glob("requirements*.txt")))


def _of_module(module: str, words: list[str]) -> str | None:
    if module == "pytest":
        return next((f"there is no {w}" for w in words if w.startswith("tests/") and not (ROOT / w).exists()), None)
    if re.search(rf"^{re.escape(module)}==", _pinned(), re.M):
        return None  # A tool of a package that a target installs: not here, where `build` may be the folder.
    subcommand = words[:1] if module in _HAVE_COMMANDS else []
    code, text = _help(module, *subcommand)
    if code:
        return text.strip().splitlines()[-1]
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    return next((f"there is no {flag}" for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)), None)


@functools.cache
def _help(module: str, *words: str) -> tuple[int, str]:
    """The exit code and the output of `python -m module words --help`."""
    output, code = io.StringIO(), 0
    with mock.patch.object(sys, "argv", [module, *words, "--help"]), contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(output))
        stack.enter_context(contextlib.redirect_stderr(output))
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
        except SystemExit as end:
            code = end.code or 0
        except ImportError as error:
            return 1, str(error)
    return code, output.getvalue()


def links(text: str) -> list[str]:
    """The targets of all links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", prose(text)))


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, link: str) -> bool:
    """Whether a link leads to no file or heading; of one to another host the form alone is looked at."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme != "https" or "." not in parts.netloc
    target = (page.parent / parts.path).resolve() if parts.path else page
    return not target.exists() or (bool(parts.fragment) and parts.fragment not in anchors(target.read_text()))
