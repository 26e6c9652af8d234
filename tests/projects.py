"""Copies of this project with other sources, to build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_project(folder: Path) -> Path:
    """The project without sources of kernels."""
    for name in ("setup.py", "build_support.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("*.so", "*.txt", "__pycache__")
    shutil.copytree(ROOT / "udml_kernels", folder / "udml_kernels", ignore=ignored)
    shutil.copytree(ROOT / "python", folder / "python", ignore=ignored)
    return folder


def run_setup(project: Path, *arguments: str, python: object = sys.executable, **environment: str):
    """`setup.py` with these arguments; of UDML_KERNELS_*, it gets only those of `environment`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("UDML_KERNELS_")} | environment
    command = [str(python), "setup.py", *arguments]
    return subprocess.run(command, cwd=project, env=clean, capture_output=True, text=True, timeout=300)
