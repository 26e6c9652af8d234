"""CONTRIBUTING's list of an op's files: by it a small op is added to a copy of the package, checked and removed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOY = Path(__file__).with_name("toy_op")
# The new files, and what each is here. The op has kernels on one backend only.
FILES = {
    "udml_kernels/reference/square.py": "reference.py",
    "udml_kernels/testing/ops/square.py": "description.py",
    "udml_kernels/ops/square.py": "op.py",
    "udml_kernels/triton/square.py": "kernel.py",
}
LISTS = {"udml_kernels/__init__.py": "from .ops.square import square\n"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a copy of the package to which the op was added."""
    folder = tmp_path_factory.mktemp("added")
    shutil.copytree(
        ROOT / "udml_kernels", folder / "udml_kernels", ignore=shutil.ignore_patterns("__pycache__", "_C_cuda*")
    )
    for file, line in LISTS.items():
        path = folder / file
        path.write_text(path.read_text() + line)
    for file, source in FILES.items():
        shutil.copy(TOY / source, folder / file)
    return folder


def _python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UDML_")} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_list_names_these_files():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text[text.index("**An op.**") : text.index("**A backend.**")]
    listed = {name.replace("<op>", "square") for name in re.findall(r"`((?:udml_kernels|csrc)/[^`]+)`", section)}
    other_backends = {"csrc/cpu/square.cpp", "csrc/cuda/square.cu", "csrc/arguments.h"}
    assert listed == {*FILES, *LISTS, *other_backends}


def test_an_op_is_checked_where_it_has_kernels(package):
    result = _python(
        package,
        "-m",
        "udml_kernels",
        "check",
        "--op",
        "square",
        "--backend",
        "triton",
        "--dtype",
        "float32",
        "bfloat16",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "square" in result.stdout
    rows = [line.split() for line in _python(package, "-m", "udml_kernels", "info").stdout.splitlines()]
    assert ["square", "yes", "no", "no", "yes"] in rows


def test_an_op_without_a_kernel_is_served_by_the_reference(package):
    code = "import torch, udml_kernels as u; print(u.square(torch.tensor([1.0, -3.0])).tolist())"
    assert _python(package, "-c", code).stdout == "[1.0, 9.0]\n"
    result = _python(package, "-m", "udml_kernels", "check", "--op", "square", "--backend", "cpu")
    assert result.returncode == 2 and "no kernel is registered as udml_kernels::square.cpu" in result.stdout


def test_a_wrong_kernel_is_found(package):
    kernel = package / "udml_kernels/triton/square.py"
    right = kernel.read_text()
    kernel.write_text(right.replace("_multiplied(x, grad, 2)", "_multiplied(x, grad, 3)"))
    result = _python(
        package, "-m", "udml_kernels", "check", "--op", "square", "--backend", "triton", "--dtype", "float32"
    )
    kernel.write_text(right)
    assert result.returncode == 1, result.stdout + result.stderr


def test_an_op_is_removed_with_its_files(package, tmp_path):
    shutil.copytree(package / "udml_kernels", tmp_path / "udml_kernels")
    for file in FILES:
        (tmp_path / file).unlink()
    for file in LISTS:
        shutil.copy(ROOT / file, tmp_path / file)
    result = _python(tmp_path, "-m", "udml_kernels", "info")
    assert result.returncode == 0 and "square" not in result.stdout
