"""Check out two revisions side by side, build their CPU kernels and test them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
WORKING_TREE = "working tree"
CHECKOUTS = ROOT / "build" / "compare"
# The tests that decide whether an op of the CPU backend is correct: about a minute for all ops on two processors.
QUICK_TESTS = ("tests/test_conformance.py", "tests/test_gradients.py")
# The public functions that a work calls, where its op is not the name of one. The steps call all of them.
_FUNCTIONS = {"random": ("normal", "uniform"), "evidential_fusion": ("evidential_fusion", "evidential_loss")}


class CannotCompare(Exception):
    """The reason why a revision cannot be used: it is unknown, or does not build."""


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")


def _git(*arguments: str, folder: Path = ROOT) -> str:
    done = _run(["git", *arguments], folder)
    if done.returncode:
        raise CannotCompare(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def commit(revision: str) -> str:
    """The full hash of a revision's commit.

    Raises:
        CannotCompare: if git does not know the revision.
    """
    try:
        return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except CannotCompare:
        raise CannotCompare(f"revision: expected one that git knows, got {revision!r}") from None


def describe(revision: str) -> str:
    """A short commit hash and its subject, for people; for the working tree also whether it has changes."""
    if revision != WORKING_TREE:
        return _git("log", "-1", "--format=%h %s", commit(revision))
    changed = ", with changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"working tree at {_git('log', '-1', '--format=%h %s')}{changed}"


def prepare(revision: str) -> Path:
    """The folder of a revision with its CPU kernels built. Checkouts stay in build/compare, by commit.

    The working tree is taken as it is: `make setup` builds in it.

    Raises:
        CannotCompare: if it does not build, which leaves no checkout, or the working tree's kernels are out of date.
    """
    if revision == WORKING_TREE:
        _refuse_stale(ROOT)
        return ROOT
    name = commit(revision)
    folder = CHECKOUTS / name[:12]
    CHECKOUTS.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_clean(folder, name):
            remove(folder)
            # Forced, since git still lists a worktree whose folder was deleted without git.
            _git("worktree", "add", "--force", "--detach", str(folder), name)
        try:
            build(folder)
        except BaseException:
            remove(folder)
            raise
    return folder


def _is_clean(folder: Path, name: str) -> bool:
    """Whether the folder is a checkout of that commit and only its build changed anything in it."""
    if not (folder / ".git").exists():
        return False
    changed = _git("status", "--porcelain", "--", ":!udml_kernels/_not_built_*.txt", folder=folder)
    return _git("rev-parse", "HEAD", folder=folder) == name and not changed


def remove(folder: Path) -> None:
    """Remove a checkout, if it exists."""
    if folder.exists():
        _git("worktree", "remove", "--force", "--force", str(folder))


def build(folder: Path) -> None:
    """Build the CPU kernels in place with this interpreter; what is up to date is not compiled again."""
    columns = {"UDML_KERNELS_CPU": "1", "UDML_KERNELS_CUDA": "0"}
    done = _run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"], folder, columns)
    if done.returncode:
        raise CannotCompare(f"{folder.name} does not build:\n{_tail(done)}")


def _tail(done: subprocess.CompletedProcess) -> str:
    """The end of a command's output, with its lines cut: a compiler's command line is very long."""
    return "\n".join(line[:200] for line in (done.stdout + done.stderr).strip().splitlines()[-15:])


def _refuse_stale(folder: Path) -> None:
    libraries = list((folder / "udml_kernels").glob("_C_cpu_*.so"))
    sources = [*(folder / "csrc" / "cpu").iterdir(), *(folder / "csrc").glob("*.h")]
    if not libraries or max(s.stat().st_mtime for s in sources) > min(p.stat().st_mtime for p in libraries):
        raise CannotCompare("the working tree's kernels are missing or older than csrc: make setup")


def test_command(ops: Iterable[str]) -> list[str]:
    """The pytest command for the quick tests of these ops; each of its two processes stops at its first failure."""
    command = [sys.executable, "-m", "pytest", "-n", "2", "-x", "-q", "-p", "no:cacheprovider", *QUICK_TESTS]
    functions = [_FUNCTIONS.get(op, (op,)) for op in ops]
    if any("step" in name for names in functions for name in names):
        return command
    return [*command, "-k", " or ".join(sorted({name for names in functions for name in names}))]


def failing_tests(folder: Path, ops: Iterable[str]) -> list[str]:
    """Run the quick tests of a revision on its own CPU kernels; return what failed, or why the result is unknown."""
    environment = {"UDML_TEST_BACKENDS": "cpu", "UDML_TEST_DEVICE": "cpu", "PYTHONPATH": str(folder)}
    done = _run(test_command(ops), folder, environment)
    if done.returncode == 0:
        return []
    failing = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return failing or [f"pytest ended with {done.returncode}:\n{_tail(done)}"]
