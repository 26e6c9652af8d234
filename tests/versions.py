"""One wheel under other versions of Python and torch: `make test-versions`.

For each pair a new virtual environment gets the wheel and that torch, runs `python -m udml_kernels check` and the tests
of the ops that a torch can break: conformance, gradients, torch.compile. That happens away from the checkout, so that
only the wheel can be imported. The table goes to docs/install.md. An interpreter
that the machine lacks is named there too. uv installs.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "install.md"
# (Python, torch): each torch on one Python, and each Python with one torch. No version: the registry's newest.
PAIRS = [("3.11", torch) for torch in ("2.10.0", "2.11.0", "2.13.0", "")]
PAIRS += [(python, "2.13.0") for python in ("3.10", "3.12", "3.13", "3.14")]
PACKAGES = ("numpy", "pytest", "hypothesis", "mpmath", "filelock", "setuptools")
# The rest of the suite does not depend on the version of torch, or needs what a wheel is without.
TESTS = ("test_conformance.py", "test_gradients.py", "test_compile.py")
HEAD = ("Python", "torch", "Triton", "`check`", "tests")
FACTS = """
import json, platform, torch
from udml_kernels import backends
from udml_kernels.tools.info import version
print(json.dumps([platform.python_version(), torch.__version__, version("triton")]))
assert backends.isa_level, backends.why_unavailable("cpu")
"""


def run(command: list, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("UDML_", "PYTHON", "VIRTUAL_ENV"))}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=folder, env=clean | environment, capture_output=True, text=True)


def last_line(result: subprocess.CompletedProcess) -> str:
    lines = (result.stdout.strip() or result.stderr.strip() or "nothing printed").splitlines()
    return lines[-1].strip(" =")


def find_python(version: str) -> str | None:
    """An interpreter on the PATH, among uv's, or among pyenv's, which uv does not look through."""
    found = run([sys.executable, "-m", "uv", "python", "find", "--no-python-downloads", version], ROOT)
    if found.returncode == 0:
        return found.stdout.strip()
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return next(map(str, versions.glob(f"{version}.*/bin/python")), None)


def test(wheel: Path, python: str, torch: str, part: str, folder: Path) -> tuple[bool, list[str]]:
    """Whether all passed, and the table's row."""
    found = find_python(python)
    if found is None:
        return True, [python, torch or "newest", "", "not tested", "no such interpreter on that machine"]
    uv = [sys.executable, "-m", "uv"]
    run([*uv, "venv", "--quiet", "--python", found, folder / "venv"], folder).check_returncode()
    interpreter = folder / "venv" / "bin" / "python"
    asked = f"torch=={torch}" if torch else "torch"
    done = run([*uv, "pip", "install", "--quiet", "--python", interpreter, asked, wheel, *PACKAGES], folder)
    if done.returncode:
        return False, [python, torch or "newest", "", "", f"not installed: {last_line(done)}"]
    told = run([interpreter, "-c", FACTS], folder)
    if told.returncode:
        return False, [python, torch or "newest", "", "", last_line(told)]
    checked = run([interpreter, "-m", "udml_kernels", "check"], folder)
    # The suite's package is called tests, as here; nothing else of the checkout is copied.
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    command = [interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in TESTS)]
    tested = run(command, folder, UDML_TEST_BACKENDS="cpu", UDML_TEST_PART=part)
    for result in (checked, tested):
        if result.returncode:
            print(result.stdout[-3000:], result.stderr[-3000:], sep="\n", file=sys.stderr)
    row = [
        *json.loads(told.stdout.splitlines()[0]),
        last_line(checked),
        re.sub(r" in [\d.]+s.*", "", last_line(tested)),
    ]
    return not (checked.returncode or tested.returncode), row


def table(rows: list[list[str]]) -> str:
    lines = (HEAD, ["---"] * len(HEAD), *rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(rows: list[list[str]], wheel: Path) -> None:
    """Replace the table of docs/install.md."""
    today = datetime.date.today().isoformat()
    text = f"`{wheel.name}`, {today}, on the CPU:\n\n{table(rows)}\n"
    page = PAGE.read_text()
    begin, end = "<!-- written by make test-versions -->\n", "<!-- end -->"
    before, _, rest = page.partition(begin)
    PAGE.write_text(before + begin + text + end + rest.partition(end)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pairs", nargs="+", help="such as 3.11:2.10.0, or 3.12: for the newest torch (default: all)")
    parser.add_argument("--part", default="0/12", help="the part of the conformance cases (default: every twelfth)")
    options = parser.parse_args()
    if not options.wheel.is_file():
        parser.error(f"wheel: expected a file, got {options.wheel}")
    pairs = [tuple(pair.split(":")) for pair in options.pairs] if options.pairs else PAIRS
    rows, passed = [], True
    for python, torch in pairs:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            good, row = test(options.wheel.resolve(), python, torch, options.part, Path(folder))
        rows.append(row)
        passed &= good
        print(f"{'passed' if good else 'FAILED'} {' | '.join(row)} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(table(rows))
    if passed and not options.pairs:
        write(rows, options.wheel)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
